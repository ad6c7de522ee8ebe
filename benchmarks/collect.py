"""How close lanes come to the bound of simulating and generating at the same time, against lockstep in the same run."""

import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.balance import parse_size, random_policy
from benchmarks.output import make_table, write_record
from benchmarks.packaged import checkpoint_of, recipe_of
from benchmarks.small_policy import SmallPolicy
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import load_recipe, read_config
from treadle.config.schema import CollectionConfig, Positive, Section, SimulatorConfig, TrainConfig
from treadle.config.supervised import SupervisedConfig, TinyModelConfig
from treadle.cores import usable_cores
from treadle.errors import ConfigError, PlacementError
from treadle.policies import load_policy
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.collector import Collector
from treadle.rollout.sources import ScenarioStream
from treadle.runtime.build import machine_of
from treadle.runtime.placement import PlayerPlace, place
from treadle.workers.crew import Crew, CrewPlan, check_dimensions
from treadle.workers.lanes import Arrival, Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew

Kind = Literal["threads", "processes"]

SYNTHETIC = "synthetic"
LEAST_REPEATS = 3
"""Alternations of lockstep and lanes, however long they take."""
SECONDS, SYNTHETIC_SECONDS = 60.0, 12.0
"""Least time of all alternations."""
_LANES, _DECISIONS = 4, 10
_SECONDS = 0.008
"""Of the synthetic pair, for each slot, to simulate and to generate alike: less than simulators with a renderer take
for a chunk."""
_LONG = 10_000
"""Control steps: no episode of the synthetic pair ends."""
_PACED = ("simulator.name=benchmarks.paced:PacedSimulator", f"simulator.horizon={_LONG}")
_SYNTHETIC = (*_PACED, "simulator.slots=16", "decisions=16", f"simulator.options.seconds={_SECONDS}")

_STRAGGLING_SECONDS = (0.015, 0.0002)
"""To simulate and to generate a slot."""
# A rollout lasts as long as its slowest lane: many decisions, so that chance is fair to all lanes.
_STRAGGLING = (
    *_PACED,
    "simulator.slots=4",
    "decisions=110",
    f"simulator.options.seconds={_STRAGGLING_SECONDS[0]}",
    "simulator.options.wait=sleep",
    "simulator.options.stragglers=0.1",
    "collection.lanes=4",
    "collection.workers=4",
    "collection.kind=threads",
)
_STRAGGLING_REPEATS = 3


class CollectConfig(Section):
    """What `treadle bench collect` takes as key=value."""

    decisions: Positive = _DECISIONS
    """Of each slot in a rollout."""
    simulator: SimulatorConfig = SimulatorConfig()
    collection: CollectionConfig = CollectionConfig()


@dataclass(frozen=True, slots=True)
class Overlap:
    """Lanes against lockstep; each field is a median over alternations."""

    lockstep_seconds: float
    lanes_seconds: float
    simulate_seconds: float
    """In which lockstep's simulator was busy."""
    generate_seconds: float
    """In which its policy was."""
    lanes_simulate_seconds: float
    """In which the simulator was busy in lanes: more than in lockstep where lanes cost it something."""
    lanes_generate_seconds: float
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
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | None = None,
    size: str | None = None,
    kind: Kind = "processes",
    seconds: float | None = None,
    straggling: Sequence[str] = (),
) -> dict[str, float]:
    """Measure `synthetic`, or a simulator with the settings of its first packaged recipe, where it has one.

    The policy is `checkpoint`, else the recipe's where that ships with Treadle, else one with random weights: of
    `size`, or of one that takes as long as simulating. Simulator and policy are pinned to a core each. `seconds` is the
    least time of all alternations, by default `SYNTHETIC_SECONDS` or `SECONDS`. `overrides` have the keys of
    `CollectConfig`; so has `straggling`, for the lanes with stragglers that the synthetic pair has beside. Prints a
    table and writes JSON where asked.

    Raises:
        PlacementError: Fewer than two cores, or a system that cannot pin.
        ConfigError: An unknown simulator, settings that cannot be, or a checkpoint that does not fit the simulator.
        SimulatorError: The simulator is not installed.
        CheckpointError: The checkpoint cannot be loaded.
        OutputError: The file cannot be written.
    """
    _check_policy(pair, checkpoint, size)
    config = _configure(pair, kind, overrides)
    plan = _plan(config)
    cores = usable_cores()
    if len(cores) < 2:
        raise PlacementError(f"bench collect pins simulator and policy to a core each; this process may use {cores}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        contest = _contest(pair, config, plan, checkpoint, size)
        with ExitStack() as opened:
            lockstep, lanes = (
                opened.enter_context(contest.collector(replace(plan, lanes=count))) for count in (1, plan.lanes)
            )
            least = seconds if seconds is not None else SYNTHETIC_SECONDS if pair == SYNTHETIC else SECONDS
            rounds = _alternate(lockstep, lanes, config.decisions, plan.lanes, least)
        overlap = Overlap(*(median(getattr(one, field.name) for one in rounds) for field in fields(Overlap)))
        stragglers = _stragglers(straggling) if pair == SYNTHETIC else {}
    finally:
        torch.set_num_threads(before)
    Console().print(_table(pair, contest.policy_facts["policy"], asdict(overlap) | stragglers))
    write_record(
        json,
        "collect",
        {
            "pair": pair,
            "kind": plan.kind,
            "slots": plan.slots,
            "decisions": config.decisions,
            "lanes": plan.lanes,
            "repeats": len(rounds),
            "simulator": config.simulator.model_dump(mode="json"),
            **contest.policy_facts,
            **asdict(overlap),
            **stragglers,
        },
    )
    return asdict(overlap) | stragglers


def _check_policy(pair: str, checkpoint: str | None, size: str | None) -> None:
    """Raises ConfigError or CheckpointError for what cannot be, before anything heavy starts."""
    if pair == SYNTHETIC and (given := checkpoint or size):
        raise ConfigError(f"found {given!r}: the synthetic pair has a policy of its own; leave out checkpoint and size")
    if checkpoint and size:
        raise ConfigError(f"found checkpoint {checkpoint!r} and size {size!r}: a size is of random weights; give one")
    if checkpoint:
        resolve_checkpoint(checkpoint)
    if size:
        parse_size(size)


def _configure(pair: str, kind: Kind, overrides: Sequence[str]) -> TrainConfig:
    """What is to be played: the pair's own settings, and `overrides` over them."""
    read_config(CollectConfig, None, overrides)
    cores = usable_cores()
    common = (
        f"decisions={_DECISIONS}",
        f"collection.lanes={_LANES}",
        "collection.workers=1",
        f"collection.kind={kind}",
        *(("placement.simulate=0", "placement.generate=1") if len(cores) > 1 else ()),
    )
    if pair == SYNTHETIC:
        return read_config(TrainConfig, None, [*common, *_SYNTHETIC, *overrides])
    recipe, given = recipe_of(pair, TrainConfig), [*common, *overrides, f"simulator.name={pair}"]
    return read_config(TrainConfig, None, given) if recipe is None else load_recipe(recipe, given)


def _plan(config: TrainConfig) -> CrewPlan:
    simulator = config.simulator.model_copy(update={"threads": config.simulator.threads or 1})
    where = _player(config)
    return plan_crew(
        simulator,
        config.collection,
        accelerated=False,
        simulate_cores=where.simulate,
        generate_cores=where.generate,
    )


def _player(config: TrainConfig) -> PlayerPlace:
    return place(config, machine_of(torch.device("cpu"))).players[0]


@dataclass(frozen=True, slots=True)
class _Contest:
    """A policy that is to overlap with a simulator."""

    policy: Policy
    policy_facts: dict[str, Any]
    """What the result says of it."""
    horizon: int
    cores: tuple[int, ...]
    """Of the policy."""

    def collector(self, plan: CrewPlan, lanes_class: type[Lanes] = Lanes) -> AbstractContextManager[Collector]:
        """See `open_collector`."""
        return open_collector(plan, self.policy, self.horizon, self.cores, lanes_class)


def _contest(pair: str, config: TrainConfig, plan: CrewPlan, checkpoint: str | None, size: str | None) -> _Contest:
    horizon, cores = config.simulator.horizon, _player(config).generate
    if pair == SYNTHETIC:
        return _Contest(_paced_policy(_SECONDS), {"policy": "paced"}, horizon, cores)
    if not size:
        checkpoint = checkpoint or checkpoint_of(pair)
    if checkpoint:
        policy = load_policy(resolve_checkpoint(checkpoint), device="cpu")
        facts: dict[str, Any] = {"policy": checkpoint}
    else:
        recipe = recipe_of(pair, SupervisedConfig)
        model = TinyModelConfig() if recipe is None else load_recipe(recipe, model=SupervisedConfig).model
        made = policy = random_policy(plan, model, parse_size(size) if size else None, cores)
        width, layers = made.config.width, made.config.text["num_hidden_layers"]
        parameters = sum(parameter.numel() for parameter in made.parameters())
        facts = {
            "policy": f"{model.kind} {width}x{layers} with random weights",
            "size": f"{width}x{layers}",
            "parameters": parameters,
            "chunk": made.chunk,
        }
    return _Contest(policy, facts, horizon, cores)


def _paced_policy(seconds: float) -> Policy:
    """A policy that takes the given seconds for each slot."""
    return SmallPolicy(1, seconds)  # type: ignore[return-value]


@contextmanager
def open_collector(
    plan: CrewPlan,
    policy: Policy,
    horizon: int,
    cores: tuple[int, ...] = (),
    lanes_class: type[Lanes] = Lanes,
) -> Generator[Collector, None, None]:
    """A crew that plays the policy in training scenarios, and what collects that; the policy stays on `cores`."""
    with Crew(plan) as crew:
        check_dimensions(crew, policy.action_dim)
        stream = ScenarioStream(crew.count("train", "train"), plan.slots, seed=0)
        lanes = lanes_class(crew, Session(horizon, "truncated"), stream, policy.chunk)
        yield Collector(lanes, stream, Actor(policy, Sampling(), encode=True), valued=False, cores=cores)


def _alternate(lockstep: Collector, lanes: Collector, decisions: int, count: int, seconds: float) -> list[Overlap]:
    """Lockstep and `count` lanes in turn, for so many seconds; the first rollouts warm up."""
    for collector in (lockstep, lanes):
        collector.collect(2, version=0)
    rounds: list[Overlap] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_REPEATS or time.perf_counter() - start < seconds:
        apart, together = (collector.collect(decisions, version=0).seconds for collector in (lockstep, lanes))
        simulate, generate = apart["simulate"], apart["generate"]
        more, less = max(simulate, generate), min(simulate, generate)
        ratio, bound = apart["collect"] / together["collect"], (simulate + generate) / more
        rounds.append(
            Overlap(
                lockstep_seconds=apart["collect"],
                lanes_seconds=together["collect"],
                simulate_seconds=simulate,
                generate_seconds=generate,
                lanes_simulate_seconds=together["simulate"],
                lanes_generate_seconds=together["generate"],
                ratio=ratio,
                bound_ratio=bound,
                share_of_bound=ratio / bound,
                reachable_share=more / (more + less / (count * decisions)),
            )
        )
    return rounds


def _stragglers(overrides: Sequence[str]) -> dict[str, float]:
    """Lanes whose simulators are slow by chance, each on a device of its own, served as they get ready and in turn."""
    config = read_config(TrainConfig, None, [*_STRAGGLING, *overrides])
    plan = _plan(config)
    contest = _Contest(_paced_policy(_STRAGGLING_SECONDS[1]), {}, config.simulator.horizon, ())
    with ExitStack() as opened:
        ready, fixed = (
            opened.enter_context(contest.collector(plan, lanes_class)) for lanes_class in (Lanes, FixedOrderLanes)
        )
        rounds = [
            [collector.collect(config.decisions, version=0).seconds["collect"] for collector in (fixed, ready)]
            for _ in range(_STRAGGLING_REPEATS)
        ]
    return {
        "straggler_fixed_order_seconds": median(fixed for fixed, _ in rounds),
        "straggler_lanes_seconds": median(ready for _, ready in rounds),
        "straggler_ratio": median(fixed / ready for fixed, ready in rounds),
    }


def _table(pair: str, policy: str, result: dict[str, float]) -> Table:
    table = make_table(f"collecting, {pair} pair: medians", ["what"], ["value"])
    table.add_row("policy", policy)
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    return table
