"""The shape of a run: who does what on which devices, as the run itself will choose, and which processes are alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from treadle.config.schema import TrainConfig
from treadle.runtime.placement import CPU, Placement, ProcessPlace
from treadle.runtime.planning.profile import Profile
from treadle.workers.partition import share_devices
from treadle.workers.plan import are_apart, default_lanes

Device = tuple[str, int, int]
"""Kind (`device`, or `host` for a processor core beside graphics cards), machine and number."""
Devices = frozenset[Device]
Alike = dict[Device, tuple[Device, ...]]
"""A device, and those on which the same happens at the same time, itself first."""


@dataclass(frozen=True, slots=True)
class PlayerShape:
    """How a player works."""

    slots: int
    lanes: int
    generate: Devices
    workers: tuple[Devices, ...]
    """Devices of each worker."""

    @property
    def simulate(self) -> Devices:
        """Devices of all workers."""
        return frozenset(device for own in self.workers for device in own)


@dataclass(frozen=True, slots=True)
class RankShape:
    """How a rank works."""

    share: float
    """Of the decisions."""
    devices: Devices


@dataclass(frozen=True, slots=True)
class Shape:
    """Who does what, where."""

    players: tuple[PlayerShape, ...]
    ranks: tuple[RankShape, ...]
    decisions: int
    """Of a slot in a rollout."""
    rollouts: int = 1
    """Of an update."""
    overlap: str = "none"
    staleness: int = 0
    streams: bool = False
    """Rollouts are learnt from one by one, with overlap stream."""

    def is_contended(self, role: str, devices: Devices) -> bool:
        """Another role may be at work on these devices at the same time: with lanes, or beside training."""
        overlaps = self.overlap != "none"
        if role == "train":
            others = [player.generate | player.simulate for player in self.players if overlaps]
        else:
            laned = [player for player in self.players if player.lanes > 1]
            others = [player.simulate if role == "generate" else player.generate for player in laned]
            others += [rank.devices for rank in self.ranks if overlaps]
        return any(devices & other for other in others)


def shape_of(config: TrainConfig, placement: Placement, profile: Profile) -> Shape:
    """A run's shape in a placement; what the recipe leaves open of lanes and workers is chosen as the run will."""
    accelerated, collection = placement.machines.kind != CPU, config.collection
    everything = [place.devices for place in placement.processes]
    players: list[PlayerShape] = []
    for process in placement.processes:
        if (place := process.player) is None:
            continue
        node = process.node
        cores = place.simulate or everything[0] or placement.machines.devices[node]
        generate = place.generate or placement.machines.devices[node]
        apart = are_apart(place.simulate, place.generate)
        lanes = collection.lanes or default_lanes(accelerated=accelerated, apart=apart, cores=len({*cores, *generate}))
        if profile.simulates_on == "host" and accelerated:
            # A card's share of the machine's processor cores counts as one device.
            kind, cores = "host", _own_share(placement, process)
            number = collection.workers or len(cores)
        else:
            kind, number = "device", collection.workers or (len(cores) if apart else lanes)
        shares = [_devices(kind, node, share_devices(cores, worker, number)) for worker in range(number)]
        slots = place.slots.stop - place.slots.start
        players.append(PlayerShape(slots, min(lanes, slots), _devices("device", node, generate), tuple(shares)))
    ranks = [
        RankShape(
            (process.rank.slots.stop - process.rank.slots.start) / placement.slots,
            _devices("device", process.node, process.rank.train or placement.machines.devices[process.node]),
        )
        for process in placement.processes
        if process.rank is not None
    ]
    return Shape(
        tuple(players),
        tuple(ranks),
        config.decisions,
        config.needs.rollouts,
        config.overlap,
        config.staleness,
        config.overlap == "stream" and config.algorithm.not_streamed(config) is None,
    )


def _own_share(placement: Placement, player: ProcessPlace) -> tuple[int, ...]:
    """What a player has of its machine's processor cores, which the players there divide."""
    here = [process.name for process in placement.processes if process.player and process.node == player.node]
    return share_devices(placement.machines.devices[player.node], here.index(player.name), len(here))


def one_of_each(shape: Shape) -> tuple[Shape, Alike]:
    """The shape with one of each kind of groups of processes, and the devices of the groups that are alike. Processes
    that share a device, or that others tie together, are a group.
    """
    groups: list[tuple[set[Device], list[PlayerShape | RankShape]]] = []
    for process in (*shape.players, *shape.ranks):
        devices, members = set(_in_order(process)), [process]
        for group in [group for group in groups if group[0] & devices]:
            groups.remove(group)
            devices, members = devices | group[0], [*group[1], *members]
        groups.append((devices, members))
    kinds: dict[object, list[list[PlayerShape | RankShape]]] = {}
    for _, members in groups:
        kinds.setdefault(_kind(members), []).append(members)
    chosen = [same[0] for same in kinds.values()]
    alike = {
        places[0]: places
        for same in kinds.values()
        for places in zip(*([d for member in members for d in _in_order(member)] for members in same), strict=True)
    }
    first = [member for members in chosen for member in members]
    players = tuple(member for member in first if isinstance(member, PlayerShape))
    ranks = tuple(member for member in first if isinstance(member, RankShape))
    return replace(shape, players=players, ranks=ranks), alike


def _in_order(process: PlayerShape | RankShape) -> list[Device]:
    """All devices of a process, by what they do."""
    if isinstance(process, RankShape):
        return sorted(process.devices)
    return [device for own in (process.generate, *process.workers) for device in sorted(own)]


def _kind(members: Sequence[PlayerShape | RankShape]) -> object:
    """What is equal for groups that are alike, whatever their devices."""
    numbers: dict[Device, tuple[str, int]] = {}

    def named(devices: Devices) -> tuple[tuple[str, int], ...]:
        return tuple(numbers.setdefault(device, (device[0], len(numbers))) for device in sorted(devices))

    return tuple(
        (member.share, named(member.devices))
        if isinstance(member, RankShape)
        else (member.slots, member.lanes, named(member.generate), tuple(named(own) for own in member.workers))
        for member in members
    )


def _devices(kind: str, node: int, numbers: Sequence[int]) -> Devices:
    return frozenset((kind, node, number) for number in numbers)
