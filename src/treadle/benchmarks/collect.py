"""How close lanes come to the bound of simulating and generating at the same time, against lockstep in the same run."""

import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from treadle.benchmarks.small_policy import SmallPolicy
from treadle.config.loading import resolve_checkpoint
from treadle.config.schema import PolicyConfig, SimulatorConfig
from treadle.cores import check_cores, usable_cores
from treadle.errors import PlacementError
from treadle.files import to_json, write_atomically
from treadle.policies import load_policy
from treadle.policies.critic import Critic, NoCritic, PrivilegedCritic
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.machine import describe_machine
from treadle.rollout.collector import Collector
from treadle.rollout.lanes import Arrival, Lanes, LanesPlan, check_dimensions
from treadle.simulators.build import simulator_factory
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.protocol import SimulatorSpec

Kind = Literal["threads", "processes"]

SYNTHETIC = "synthetic"
_PACED = "treadle.benchmarks.paced:PacedSimulator"


@dataclass(frozen=True, slots=True)
class Pair:
    """A simulator and a policy, and how they are run against each other."""

    slots: int
    decisions: int
    """Of each slot in a rollout."""
    lanes: int
    repeats: int
    """Alternations of lockstep and lanes."""


SYNTHETIC_PAIR = Pair(slots=16, decisions=24, lanes=4, repeats=5)
SIMULATOR_PAIR = Pair(slots=128, decisions=10, lanes=4, repeats=7)
_SECONDS = 0.003
"""Of the synthetic pair, for each slot, to simulate and to generate alike: 48 ms for all slots."""
# A rollout lasts as long as its slowest lane: many decisions, so that chance is fair to all lanes.
_STRAGGLING = Pair(slots=4, decisions=400, lanes=4, repeats=3)
_STRAGGLING_SECONDS = (0.005, 0.0002)
"""To simulate and to generate a slot."""
_STRAGGLERS = 0.1
_LONG = 10_000
"""Control steps: no episode of the synthetic pair ends."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Lanes against lockstep; each field is a median over alternations."""

    lockstep_seconds: float
    lanes_seconds: float
    ratio: float
    """Lockstep by lanes."""
    bound_ratio: float
    """(simulate + generate) / max(simulate, generate), of lockstep's own busy times."""
    share_of_bound: float
    """`ratio` by `bound_ratio`."""
    reachable_share: float
    """What the first and the last lane of a rollout leave of the bound, when nothing else is lost: the policy can
    begin on one lane only, and the simulator ends on one."""


class FixedOrderLanes(Lanes):
    """Lanes that are served in turn, ready or not, to compare with."""

    _turn = 0

    def ready(self, most: int) -> list[Arrival]:
        """The lane whose turn it is."""
        while self._turn not in self._arrived:
            self._receive(wait=True)
        lane, self._turn = self._turn, (self._turn + 1) % len(self)
        self._arrived.remove(lane)
        return [self._take(lane)]


def run(
    pair: str,
    json: Path | None,
    checkpoint: str = PolicyConfig().checkpoint,
    kind: Kind = "processes",
    sizes: Pair | None = None,
    straggling: Pair = _STRAGGLING,
) -> dict[str, float]:
    """Measure `synthetic`, or an installed simulator with a checkpoint that was made for it.

    Simulator and policy are pinned to a core each. Prints a table and writes JSON where asked.

    Raises:
        PlacementError: Fewer than two cores, or a system that cannot pin.
        ConfigError: An unknown simulator, or a checkpoint that does not fit it.
        CheckpointError: The checkpoint cannot be loaded.
        OutputError: The file cannot be written.
    """
    cores = usable_cores()
    if len(cores) < 2:
        raise PlacementError(f"bench collect pins simulator and policy to a core each; this process may use {cores}")
    check_cores("bench collect", cores[:2])
    sizes = sizes or (SYNTHETIC_PAIR if pair == SYNTHETIC else SIMULATOR_PAIR)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        contest = _synthetic(_SECONDS, _SECONDS) if pair == SYNTHETIC else _real(pair, checkpoint)
        with ExitStack() as opened:
            lockstep, lanes = (
                opened.enter_context(_collector(contest, sizes.slots, lanes, 1, kind, cores[:1], cores[1:2]))
                for lanes in (1, sizes.lanes)
            )
            overlap = _alternate(lockstep, lanes, sizes)
        stragglers = _stragglers(straggling) if pair == SYNTHETIC else {}
    finally:
        torch.set_num_threads(before)
    Console().print(_table(pair, asdict(overlap) | stragglers))
    if json is not None:
        result = {
            "benchmark": "collect",
            "pair": pair,
            "command": shlex.join(["treadle", *sys.argv[1:]]),
            "machine": describe_machine(),
            "kind": kind,
            **asdict(sizes),
            **asdict(overlap),
            **stragglers,
        }
        write_atomically(json, to_json(result) + "\n")
    return asdict(overlap) | stragglers


@dataclass(frozen=True, slots=True)
class _Contest:
    """A simulator and a policy that are to overlap."""

    factory: SimulatorFactory
    horizon: int
    policy: Policy
    critic: Callable[[SimulatorSpec], Critic]


def _synthetic(simulate: float, generate: float, **options: Any) -> _Contest:
    """A pair that takes the given seconds for each slot."""
    factory = SimulatorFactory(_PACED, {"horizon": _LONG, "seconds": simulate, **options})
    return _Contest(factory, _LONG, SmallPolicy(1, generate), lambda _: NoCritic())  # type: ignore[arg-type]


def _real(name: str, checkpoint: str) -> _Contest:
    policy = load_policy(resolve_checkpoint(checkpoint), device="cpu")
    config = SimulatorConfig(name=name)
    return _Contest(
        simulator_factory(config, threads=1),
        config.horizon,
        policy,
        lambda spec: PrivilegedCritic(spec.state_dim, policy.chunk, 128) if spec.state_dim else NoCritic(),
    )


@contextmanager
def _collector(
    contest: _Contest,
    slots: int,
    lanes: int,
    workers: int,
    kind: Kind,
    simulate: tuple[int, ...],
    generate: tuple[int, ...],
    lanes_class: type[Lanes] = Lanes,
) -> Generator[Collector, None, None]:
    plan = LanesPlan(
        contest.factory,
        slots,
        contest.horizon,
        {"seed": 0},
        lanes=lanes,
        workers=workers,
        kind=kind,
        cores=simulate,
        timeout=120.0,
    )
    policy = contest.policy
    with lanes_class(plan, policy.chunk) as opened:
        check_dimensions(opened.spec, policy.action_dim)
        yield Collector(opened, policy, Sampling(), contest.critic(opened.spec), encode=True, cores=generate)


def _alternate(lockstep: Collector, lanes: Collector, sizes: Pair) -> Overlap:
    """Lockstep and lanes in turn; the first rollouts warm up."""
    for collector in (lockstep, lanes):
        collector.collect(2, version=0)
    rounds: list[Overlap] = []
    for _ in range(sizes.repeats):
        apart, together = (collector.collect(sizes.decisions, version=0).seconds for collector in (lockstep, lanes))
        simulate, generate = apart["simulate"], apart["generate"]
        more, less = max(simulate, generate), min(simulate, generate)
        ratio, bound = apart["collect"] / together["collect"], (simulate + generate) / more
        reachable = more / (more + less / (sizes.lanes * sizes.decisions))
        rounds.append(Overlap(apart["collect"], together["collect"], ratio, bound, ratio / bound, reachable))
    return Overlap(*(median(getattr(one, field.name) for one in rounds) for field in fields(Overlap)))


def _stragglers(sizes: Pair) -> dict[str, float]:
    """Lanes whose simulators are slow by chance, each on a device of its own, served as they get ready and in turn."""
    contest = _synthetic(*_STRAGGLING_SECONDS, wait="sleep", stragglers=_STRAGGLERS)
    with ExitStack() as opened:
        ready, fixed = (
            opened.enter_context(
                _collector(contest, sizes.slots, sizes.lanes, sizes.lanes, "threads", (), (), lanes_class)
            )
            for lanes_class in (Lanes, FixedOrderLanes)
        )
        rounds = [
            [collector.collect(sizes.decisions, version=0).seconds["collect"] for collector in (fixed, ready)]
            for _ in range(sizes.repeats)
        ]
    return {
        "straggler_fixed_order_seconds": median(fixed for fixed, _ in rounds),
        "straggler_lanes_seconds": median(ready for _, ready in rounds),
        "straggler_ratio": median(fixed / ready for fixed, ready in rounds),
    }


def _table(pair: str, result: dict[str, float]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"collecting, {pair} pair: medians", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    return table
