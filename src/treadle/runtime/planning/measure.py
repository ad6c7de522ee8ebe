"""A profile of a recipe's roles, measured here in about a minute, with half and with all of its slots."""

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.schema import TrainConfig
from treadle.cores import pinned
from treadle.data.rollout import Rollout
from treadle.runtime.member import Member, Start
from treadle.runtime.placement import CPU, Machines, Placement, PlayerPlace, ProcessPlace, RankPlace
from treadle.runtime.planning.profile import Affine, Profile
from treadle.runtime.planning.shape import shape_of
from treadle.runtime.planning.timeline import simulate_timeline

_ROUNDS = 3
"""In the first everything is allocated, and the simulators begin; of the others the fastest counts, for each role,
since whatever else the machine does can only add to it.
"""


@dataclass(frozen=True, slots=True)
class _Measured:
    slots: float
    """That played, the mean over decisions."""
    decisions: float
    """That were learnt from."""
    simulate: float
    """Seconds of a chunk of those slots."""
    generate: float
    """Seconds of a decision of those slots, with all that the exchange with the simulators takes."""
    learn: float
    """Seconds of an update from those decisions."""
    playing: tuple[float, ...]
    collect: float
    """Seconds of the rollout."""


def measure_profile(
    config: TrainConfig, machines: Machines, counts: Sequence[int], progress: Callable[[str], None] = lambda _: None
) -> Profile:
    """Measure on this machine, with each of these numbers of devices.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    base = resolve_checkpoint(config.policy.checkpoint).resolve()
    group = config.needs.group_size
    slots = config.simulator.slots
    sizes = sorted({max(group, slots // 2 // group * group), slots})
    simulate: dict[int, Affine] = {}
    generate: dict[int, Affine] = {}
    learn: dict[int, Affine] = {}
    playing = (1.0,)
    for count in counts:
        found: list[_Measured] = []
        for size in sizes:
            progress(f"measuring {size} slots on {count} {machines.word}{'s' * (count > 1)}")
            placement = _colocated(machines, size, machines.devices[0][:count])
            found.append(_measure(_laned(config, size, 1), base, placement))
        few, many = found[0], found[-1]
        simulate[count] = _through((few.slots, few.simulate), (many.slots, many.simulate))
        generate[count] = _through((few.slots, few.generate), (many.slots, many.generate))
        learn[count] = _through((few.decisions, few.learn), (many.decisions, many.learn))
        playing = many.playing
    profile = Profile(f"measured on {platform.node()}, {machines.kind}", simulate, generate, learn, playing)
    if slots < 2 * group:
        return profile
    devices = machines.devices[0][: max(counts)]
    progress(f"measuring {slots} slots in 2 lanes on {len(devices)} {machines.word}{'s' * (len(devices) > 1)}")
    return replace(profile, contention=_contention(config, base, machines, devices, profile))


def _contention(config: TrainConfig, base: Path, machines: Machines, devices: tuple[int, ...], known: Profile) -> float:
    """How much longer a rollout takes in two lanes on shared devices than taking turns would."""
    laned = _laned(config, config.simulator.slots, 2)
    placement = _colocated(machines, laned.simulator.slots, devices)
    free = replace(known, learn={1: Affine(0.0, 0.0)})
    turns = simulate_timeline(shape_of(laned, placement, free), free).seconds
    return max(1.0, _measure(laned, base, placement).collect / turns)


def _through(smaller: tuple[float, float], larger: tuple[float, float]) -> Affine:
    return Affine.through(smaller, larger) if smaller[0] < larger[0] else Affine(0.0, larger[1] / larger[0])


def _laned(config: TrainConfig, slots: int, lanes: int) -> TrainConfig:
    """So many slots and lanes in one process, and one rollout of an update."""
    simulator = config.simulator.model_copy(update={"slots": slots})
    collection = config.collection.model_copy(update={"lanes": lanes, "workers": lanes})
    algorithm = config.algorithm.model_copy(update={"rounds": 1}) if config.needs.rollouts > 1 else config.algorithm
    changes = {"simulator": simulator, "collection": collection, "algorithm": algorithm, "overlap": "none"}
    return config.model_copy(update=changes)


def _colocated(machines: Machines, slots: int, devices: tuple[int, ...]) -> Placement:
    """Every role in one process, on the same devices."""
    own = devices if machines.kind == CPU else devices[:1]
    rows = slice(0, slots)
    return Placement(
        machines, "colocated", slots, (ProcessPlace(0, PlayerPlace(0, rows, own, own), RankPlace(0, rows, own)),)
    )


def _measure(config: TrainConfig, base: Path, placement: Placement) -> _Measured:
    """Rollouts of a colocated process, and updates from them."""
    own = placement.processes[0].devices
    with ExitStack() as opened:
        member = opened.enter_context(Member(config, placement, 0, Start(base, base)))
        assert member.crew is not None
        member.begin(member.crew.spec.state_dim)
        opened.enter_context(pinned(own if placement.machines.kind == CPU else ()))
        found: list[_Measured] = []
        # Past the critic's warm-up, where the policy learns too.
        first = config.critic_warmup
        member.player.version = first
        for version in range(first, first + _ROUNDS):
            rollout = member.player.collect_one()
            began = time.perf_counter()
            member.trainer.update([rollout], version)
            member.trainer.average()
            member.player.receive(member.trainer.publish(version + 1))
            found.append(_measured(rollout, time.perf_counter() - began))
        return _fastest(found[1:])


def _fastest(found: Sequence[_Measured]) -> _Measured:
    """The last one, with each role as fast as it was in any of them for the same work."""
    last, fastest = found[-1], dict[str, float]()
    for role, work in (("simulate", "slots"), ("generate", "slots"), ("learn", "decisions"), ("collect", "decisions")):
        fastest[role] = min(getattr(one, role) / getattr(one, work) for one in found) * getattr(last, work)
    return replace(last, **fastest)


def _measured(rollout: Rollout, learn: float) -> _Measured:
    played = rollout.valid.any(-1)
    decisions, length = float(played.sum()), len(played)
    simulate = rollout.seconds["simulate"]
    return _Measured(
        decisions / length,
        decisions,
        simulate / length,
        (rollout.seconds["collect"] - simulate) / length,
        learn,
        tuple(played.float().mean(1).tolist()),
        rollout.seconds["collect"],
    )
