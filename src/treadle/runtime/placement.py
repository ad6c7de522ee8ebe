"""From the placement that a recipe asks for to the processes of a run: pure data, made before anything starts.

A process has a player, a trainer rank, or both, which then share one policy. Slots are numbered over all players, and
each player and each rank has neighbouring ones, so what is played and learnt does not depend on how many there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from treadle.config.on_policy import OnPolicyConfig
from treadle.config.placement import DeviceRange, parse_devices
from treadle.config.schema import TrainConfig
from treadle.errors import PlacementError
from treadle.workers.partition import cut, share_devices

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Machines:
    """The devices of a run."""

    kind: str
    """Their type, as torch names it: `cpu`, whose devices are cores, or `cuda`."""
    devices: tuple[tuple[int, ...], ...]
    """The numbers of each machine's devices, this machine's first."""
    names: tuple[str, ...] = ("this machine",)
    """What each machine is called in messages."""
    lost: frozenset[int] = frozenset()
    """Machines that are gone; what a recipe names of theirs is left out."""
    physical: bool = True
    """The numbers of cores are those of processor cores, which threads can be pinned to; else they only count."""

    @property
    def word(self) -> str:
        """What a device is called in messages."""
        return "core" if self.kind == CPU else "device"


@dataclass(frozen=True, slots=True)
class PlayerPlace:
    """Where a player is."""

    number: int
    slots: slice
    """Its slots, of all slots."""
    simulate: tuple[int, ...]
    """Devices of its simulators, on its machine; none for any."""
    generate: tuple[int, ...]
    """Cores that its policy acts on, or one graphics card; none for any core."""


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where a trainer rank is."""

    number: int
    slots: slice
    """Slots whose decisions it learns from."""
    train: tuple[int, ...]
    """Cores, or one graphics card; none for any core."""


@dataclass(frozen=True, slots=True)
class ProcessPlace:
    """One process of a run."""

    node: int
    """Its machine."""
    player: PlayerPlace | None
    rank: RankPlace | None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        parts = [f"{role} {place.number}" for role, place in (("player", self.player), ("rank", self.rank)) if place]
        return " and ".join(parts)

    @property
    def devices(self) -> tuple[int, ...]:
        """Every device of its machine that it computes on."""
        found = set((*self.player.generate, *self.player.simulate) if self.player else ())
        return tuple(sorted(found.union(self.rank.train if self.rank else ())))


@dataclass(frozen=True, slots=True)
class Placement:
    """The processes of a run."""

    machines: Machines
    mode: Literal["colocated", "hybrid", "disaggregated"]
    """What the field calls it: all roles on the same devices, training beside others on some, or on its own."""
    slots: int
    """Of all players."""
    processes: tuple[ProcessPlace, ...]
    sharded: bool = False
    """Ranks divide weights, gradients and optimizer state among them."""

    @property
    def players(self) -> list[PlayerPlace]:
        """In order of their slots."""
        return sorted((p.player for p in self.processes if p.player), key=lambda place: place.number)

    @property
    def ranks(self) -> list[RankPlace]:
        """In order of their slots."""
        return sorted((p.rank for p in self.processes if p.rank), key=lambda place: place.number)

    @property
    def alone(self) -> bool:
        """One process is enough."""
        return len(self.processes) == 1


def place(config: TrainConfig, machines: Machines) -> Placement:
    """The processes of a run on these machines. Where playing overlaps with training, a player and a rank share a
    process only if it is the run's only one, and are threads of it.

    Raises:
        PlacementError: Devices that there are not, a machine that generates and does not simulate, or fewer groups of
            slots than players or ranks.
    """
    wanted = config.placement
    simulate, generate, train = (
        _resolve(f"placement.{role}", getattr(wanted, role), machines) for role in ("simulate", "generate", "train")
    )
    players = _divide("placement.players", wanted.players, generate, machines)
    ranks = _divide("placement.ranks", wanted.ranks, train, machines)
    group = config.needs.group_size
    player_slots = _cut_slots("players", len(players), config.simulator.slots, group)
    rank_slots = _cut_slots("ranks", len(ranks), config.simulator.slots, group)
    _check_lanes(config, player_slots)
    # A rank and a player on the same devices are one process.
    processes: list[ProcessPlace] = []
    for number, (node, devices) in enumerate(players):
        beside = [i for i, (at, _) in enumerate(players) if at == node]
        simulators = share_devices(_of_node(simulate, node), beside.index(number), len(beside))
        if not simulators:
            raise PlacementError(
                f"placement.simulate: found {wanted.simulate!r}, which has no device of {machines.names[node]}, where "
                f"player {number} generates; simulators are on the machine of their player: add node{node}:all, or "
                "change placement.generate"
            )
        place = PlayerPlace(number, player_slots[number], simulators, devices)
        processes.append(ProcessPlace(node, place, None))
    for number, (node, devices) in enumerate(ranks):
        place = RankPlace(number, rank_slots[number], devices)
        apart = config.overlap != "none" and len(players) + len(ranks) > 2
        places = [] if apart else processes
        shared = next((i for i, other in enumerate(places) if _shares(other, node, devices, machines)), None)
        if shared is None:
            processes.append(ProcessPlace(node, None, place))
        else:
            processes[shared] = replace(processes[shared], rank=place)
    played = {*simulate, *generate}
    mode = "colocated" if simulate == generate == train else "hybrid" if played & set(train) else "disaggregated"
    sharded = _is_sharded(config, len(ranks), machines)
    return _unpinned(Placement(machines, mode, config.simulator.slots, tuple(processes), sharded))


def _resolve(key: str, text: str, machines: Machines) -> list[tuple[int, int]]:
    """Machine and device, in order, each once."""
    everywhere = [(node, device) for node, devices in enumerate(machines.devices) for device in devices]
    found: dict[tuple[int, int], None] = {}
    for asked in parse_devices(text):
        if asked.node is not None and asked.node >= len(machines.devices):
            raise PlacementError(
                f"{key}: found node{asked.node} in {text!r}, the run has {len(machines.devices)} machine"
                f"{'s' * (len(machines.devices) > 1)}, node0 to node{len(machines.devices) - 1}"
            )
        there = [place for place in everywhere if asked.node in (None, place[0])]
        _check_range(key, text, asked, there, machines)
        found |= dict.fromkeys(there[asked.first : None if asked.last is None else asked.last + 1])
    if not (left := sorted(place for place in found if place[0] not in machines.lost)):
        raise PlacementError(f"{key}: found {text!r}, all of whose machines are gone; restart them, or name others")
    return left


def _check_range(key: str, text: str, asked: DeviceRange, there: Sequence[tuple[int, int]], machines: Machines) -> None:
    if max(asked.first, asked.last or 0) >= len(there):
        where = "this run" if asked.node is None else f"node{asked.node}"
        raise PlacementError(
            f"{key}: found {text!r}, {where} has {len(there)} {machines.word}{'s' * (len(there) != 1)}, numbered from "
            f"0 to {len(there) - 1}"
        )


def _of_node(devices: Sequence[tuple[int, int]], node: int) -> tuple[int, ...]:
    return tuple(device for at, device in devices if at == node)


def _divide(
    key: str, count: int, devices: Sequence[tuple[int, int]], machines: Machines
) -> list[tuple[int, tuple[int, ...]]]:
    """Machine and devices of each of a role's processes."""
    if machines.kind != CPU:
        if count not in (0, len(devices)):
            raise PlacementError(
                f"{key}: found {count}, each graphics card of the role has one process and there are {len(devices)}; "
                f"leave {key} out, or name other devices"
            )
        return [(node, (device,)) for node, device in devices]
    nodes = [(node, tuple(device for _, device in each)) for node, each in groupby(devices, lambda place: place[0])]
    count = count or len(nodes)
    if count < len(nodes):
        raise PlacementError(
            f"{key}: found {count}, its devices are on {len(nodes)} machines; use at least {len(nodes)}, or devices of "
            "fewer machines"
        )
    divided: list[tuple[int, tuple[int, ...]]] = []
    for (node, cores), (first, stop) in zip(nodes, cut(0, count, len(nodes)), strict=True):
        divided += [(node, share_devices(cores, i, stop - first)) for i in range(stop - first)]
    return divided


def _cut_slots(role: str, count: int, slots: int, group: int) -> list[slice]:
    """The slots of each process of a role: whole groups, which differ in number by one at most."""
    groups = -(-slots // group)
    if groups < count:
        what = f"{groups} groups of algorithm.group_size {group}" if group > 1 else f"{slots} slots"
        raise PlacementError(
            f"placement.{role}: {count} {role} with simulator.slots {slots}, which are {what}: each needs one at "
            f"least; use at most {groups} {role}, or simulator.slots={count * group}"
        )
    return [slice(first * group, min(stop * group, slots)) for first, stop in cut(0, groups, count)]


def _check_lanes(config: TrainConfig, slots: Sequence[slice]) -> None:
    fewest = min(rows.stop - rows.start for rows in slots)
    if config.collection.lanes > fewest:
        raise PlacementError(
            f"collection.lanes {config.collection.lanes} with {fewest} slots of a player: each lane needs a slot at "
            f"least; use collection.lanes of at most {fewest}, or more simulator.slots"
        )


def _shares(process: ProcessPlace, node: int, devices: tuple[int, ...], machines: Machines) -> bool:
    """Whether a rank on these devices belongs into a process that has a player."""
    if process.rank is not None or process.player is None or process.node != node:
        return False
    own = process.player.generate if machines.kind != CPU else process.devices
    return bool(set(own) & set(devices))


def _is_sharded(config: TrainConfig, ranks: int, machines: Machines) -> bool:
    """Whether ranks hold a part of the weights each. Raises PlacementError."""
    wanted, adapters = config.placement.sharding, config.policy.lora.rank
    if wanted == "full" and adapters:
        raise PlacementError(
            f"placement.sharding: found 'full' with policy.lora.rank {adapters}: frozen weights would be gathered "
            "in every pass, to train little; use placement.sharding none, or policy.lora.rank=0"
        )
    chosen = wanted == "full" or (wanted == "auto" and machines.kind != CPU and not adapters)
    return chosen and ranks > 1


def _unpinned(placement: Placement) -> Placement:
    """One process whose roles have every core is not pinned to them."""
    machines, (process, *others) = placement.machines, placement.processes
    if others or machines.kind != CPU or process.player is None or process.rank is None:
        return placement
    every = machines.devices[process.node]

    def free(cores: tuple[int, ...]) -> tuple[int, ...]:
        return () if cores == every else cores

    player = replace(process.player, simulate=free(process.player.simulate), generate=free(process.player.generate))
    rank = replace(process.rank, train=free(process.rank.train))
    return replace(placement, processes=(ProcessPlace(process.node, player, rank),))


def describe(placement: Placement, config: TrainConfig) -> list[str]:
    """What follows from a placement, in lines for a person: where each role is, and how much work it has."""
    return [*_describe(placement, config), *_describe_overlap(config)]


def _describe_overlap(config: TrainConfig) -> list[str]:
    if config.overlap == "none":
        return []
    if config.overlap == "async":
        lag = config.staleness
        return [f"overlap async: rollouts are played by weights {lag} update{'s' * (lag != 1)} older than the learning"]
    if reason := config.algorithm.not_streamed(config):
        return [f"overlap stream: an update waits for its last rollout all the same, because {reason}"]
    return ["overlap stream: rollouts are propagated back while the next ones of the same update are played"]


def _describe(placement: Placement, config: TrainConfig) -> list[str]:
    machines, work = placement.machines, _describe_work(placement.slots, config)
    if placement.alone:
        return [f"{placement.mode}, one process: {work}"]
    kept = "a part of the weights" if placement.sharded else "the weights"
    lines = [
        (
            f"{placement.mode}, {len(placement.processes)} processes: players {len(placement.players)}, ranks "
            f"{len(placement.ranks)}, each with {kept}; {work}"
        )
    ]
    for process in placement.processes:
        parts: list[str] = []
        if player := process.player:
            parts.append(
                f"simulates on {_numbers(player.simulate)} and generates on {_numbers(player.generate)}, "
                f"slots {player.slots.start} to {player.slots.stop - 1}"
            )
        if rank := process.rank:
            count = rank.slots.stop - rank.slots.start
            parts.append(
                f"trains on {_numbers(rank.train)}, slots {rank.slots.start} to {rank.slots.stop - 1}, "
                f"{count * config.decisions:,} decisions"
            )
        where = f" on {machines.names[process.node]}" if len(machines.names) > 1 else ""
        lines.append(f"  {process.name}{where}: {'; '.join(parts)} ({machines.word}s)")
    return lines


def _describe_work(slots: int, config: TrainConfig) -> str:
    """The arithmetic of an update: slots, groups, decisions, rollouts and steps."""
    needs, decisions = config.needs, config.decisions * slots
    groups = f" in {-(-slots // needs.group_size)} groups of {needs.group_size}" if needs.group_size > 1 else ""
    parts = [f"{slots} slots{groups}", f"{decisions:,} decisions a rollout"]
    if needs.rollouts > 1:
        parts.append(f"{needs.rollouts} rollouts and {decisions * needs.rollouts:,} decisions an update")
    if needs.refills:
        parts.append(f"up to {needs.refills} rollouts more")
    if steps := config.algorithm.count_steps(decisions):
        sizes = ""
        if isinstance(config.algorithm, OnPolicyConfig):
            sizes = f" of {config.algorithm.minibatch:,} decisions in passes of {config.algorithm.micro_batch:,}"
        parts.append(f"at most {steps} step{'s' * (steps != 1)} an update{sizes}")
    return ", ".join(parts)


def _numbers(devices: Sequence[int]) -> str:
    return ", ".join(map(str, devices))
