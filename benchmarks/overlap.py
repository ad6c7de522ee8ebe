"""What it gains to play beside training, against the bound of two roles on a core each.

R rollouts of an update take C seconds to play, and U to learn from. Without overlap an iteration takes C + U. With
async it cannot take less than max(C, U). With stream the first rollout has to be there before anything is learnt, and
the last before the update can end: of R equal parts no schedule takes less than max(C, U) + min(C, U) / R.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from rich.console import Console

from benchmarks.output import make_table, write_record
from benchmarks.small_policy import SmallPolicy
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import load_recipe
from treadle.config.schema import TrainConfig
from treadle.cores import pinned, usable_cores
from treadle.errors import PlacementError
from treadle.runtime.member import Member, Start
from treadle.runtime.overlap import OverlappedPlayers
from treadle.runtime.placement import Machines, Placement, PlayerPlace, ProcessPlace, RankPlace
from treadle.runtime.player import Player
from treadle.runtime.roles import Players
from treadle.runtime.weights import Weights
from treadle.workers.crew import Crew
from treadle.workers.plan import plan_crew

Pair = Literal["synthetic", "tabletop"]
MODES = ("none", "stream", "async")
_GRPO = (
    "algorithm.rounds=4",
    "algorithm.estimator=rloo_alike",
    "algorithm.normalize_advantages=false",
    "algorithm.minibatch=100000",
    "algorithm.dual_clip=3",
)
_RECIPE = {
    "synthetic": (
        "simulator.name=benchmarks.paced:PacedSimulator",
        "simulator.slots=16",
        "simulator.horizon=10",
        "decisions=10",
    ),
    "tabletop": ("simulator.slots=64",),
}
_PACE = 0.5
"""Seconds of a synthetic update, and about those of its rollouts."""


@dataclass(slots=True)
class Roles:
    """A mode's own player and trainer."""

    config: TrainConfig
    player: Players
    trainer: Any
    intervals: list[float] = field(default_factory=list)
    """Seconds of iterations, less the first and the last of every turn, where nothing can overlap."""
    collects: list[float] = field(default_factory=list)
    """Seconds in which rollouts of an update were played."""
    updates: list[float] = field(default_factory=list)
    """Seconds from the last rollout to the next weights."""

    def clear(self) -> None:
        """Forget what was measured."""
        for seconds in (self.intervals, self.collects, self.updates):
            seconds.clear()

    def turn(self) -> None:
        """Some iterations, from nothing played to nothing left."""
        player, trainer = self.player, self.trainer
        if isinstance(player, OverlappedPlayers):
            player.begin(0, [trainer.publish(0)])
        else:
            player.receive(trainer.publish(0))
        ends: list[float] = []
        for version in range(self.config.iterations):
            rollouts = player.collect(trainer.wants_more)
            began = time.perf_counter()
            trainer.update(rollouts, version)
            trainer.average()
            player.receive(trainer.publish(version + 1))
            ends.append(time.perf_counter())
            self.updates.append(ends[-1] - began)
            self.collects.append(player.take_report().seconds["collect"])
        self.intervals += [after - before for before, after in pairwise(ends[:-1])]


class PacedTrainer:
    """A trainer whose update takes a given time of a core, in kernels that let other threads run."""

    def __init__(self, config: TrainConfig, seconds: float) -> None:
        self._rounds, self._streams = config.needs.rollouts, config.overlap == "stream"
        self._seconds = seconds
        self._prepared = 0
        self._matrix = torch.full((192, 192), 1 / 192)

    def wants_more(self, rollouts: Sequence[Any]) -> bool:
        """Until all are there; with stream each takes its part of the time."""
        self._prepared = self._prepared if rollouts else 0
        if self._streams and len(rollouts) > self._prepared:
            self._prepared += 1
            self._work(self._seconds / self._rounds)
        return len(rollouts) < self._rounds

    def update(self, rollouts: Sequence[Any], version: int) -> None:
        """The rest of the time."""
        self._work(self._seconds * (1 - self._prepared / len(rollouts)))

    def average(self) -> None:
        """Nothing."""

    def publish(self, version: int) -> Weights:
        """No weights."""
        return Weights(version)

    def _work(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            torch.mm(self._matrix, self._matrix)


def run(pair: Pair, json: Path | None, overrides: Sequence[str] = (), *, turns: int = 3, iterations: int = 6) -> Any:
    """Measure, print a table and write JSON where asked. Raises TreadleError."""
    cores = usable_cores()
    if len(cores) < 2:
        raise PlacementError(
            "treadle bench overlap: playing and training get a core each, and this process may use one"
        )
    play, learn = cores[:2]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as opened:
            config = _config(pair, [f"iterations={iterations}", *overrides])
            modes = {
                mode: opened.enter_context(_open(pair, config.model_copy(update={"overlap": mode}), play, learn))
                for mode in MODES
            }
            with pinned((learn,)):
                # Everything is paged in and allocated before it counts.
                for roles in modes.values():
                    roles.turn()
                    roles.clear()
                for _ in range(turns):
                    for roles in modes.values():
                        roles.turn()
    finally:
        torch.set_num_threads(threads)
    figures = summarize(modes, config.needs.rollouts) | {"pair": pair, "turns": turns, "iterations": iterations}
    table = make_table(f"Seconds of an iteration: {pair}", ["overlap"], ["seconds", "bound", "share of it"])
    table.add_row("none", f"{figures['none_seconds']:.3f}", "", "")
    for mode, bound in (("stream", "stream_bound_seconds"), ("async", "bound_seconds")):
        table.add_row(
            mode, f"{figures[f'{mode}_seconds']:.3f}", f"{figures[bound]:.3f}", f"{figures[_SHARES[mode]]:.1%}"
        )
    Console().print(table)
    return write_record(json, "overlap", figures)


_SHARES = {"stream": "stream_share_of_bound", "async": "share_of_bound"}


def summarize(modes: Mapping[str, Roles], rounds: int) -> dict[str, float]:
    """Medians over iterations, and what share of each bound is reached."""
    collect, update = (median(getattr(modes["none"], name)) for name in ("collects", "updates"))
    seconds = {f"{mode}_seconds": median(roles.intervals) for mode, roles in modes.items()}
    bound = max(collect, update)
    stream_bound = bound + min(collect, update) / rounds
    return {
        **seconds,
        "collect_seconds": collect,
        "update_seconds": update,
        "rollouts": rounds,
        "bound_seconds": bound,
        "stream_bound_seconds": stream_bound,
        "bound_ratio": (collect + update) / bound,
        "async_ratio": seconds["none_seconds"] / seconds["async_seconds"],
        "stream_ratio": seconds["none_seconds"] / seconds["stream_seconds"],
        "share_of_bound": bound / seconds["async_seconds"],
        "stream_share_of_bound": stream_bound / seconds["stream_seconds"],
    }


def _config(pair: Pair, overrides: Sequence[str]) -> TrainConfig:
    given = [*_GRPO, *_RECIPE[pair], "collection.kind=processes", "collection.lanes=1", "collection.workers=1"]
    if pair == "synthetic":
        seconds = _PACE / 4 / 10 / 16
        given.append(f"simulator.options={{seconds={seconds}}}")
    return load_recipe("quickstart-grpo", [*given, *overrides], TrainConfig)


@contextmanager
def _open(pair: Pair, config: TrainConfig, play: int, learn: int) -> Generator[Roles, None, None]:
    opening: dict[str, Callable[..., Any]] = {"synthetic": _synthetic, "tabletop": _whole}
    with ExitStack() as opened:
        player, trainer = opening[pair](config, play, learn, opened)
        if config.overlap != "none":
            player = OverlappedPlayers(player, config)
            opened.callback(player.close)
        yield Roles(config, player, trainer)


def _whole(config: TrainConfig, play: int, learn: int, opened: ExitStack) -> tuple[Player, Any]:
    """The roles of a run of one process."""
    slots = slice(0, config.simulator.slots)
    place = ProcessPlace(0, PlayerPlace(0, slots, (play,), (play,)), RankPlace(0, slots, (learn,)))
    machines = Machines("cpu", ((play, learn),))
    base = resolve_checkpoint(config.policy.checkpoint)
    placement = Placement(machines, "disaggregated", config.simulator.slots, (place,))
    member = opened.enter_context(Member(config, placement, 0, Start(base, base)))
    assert member.crew is not None
    member.begin(member.crew.spec.state_dim)
    return member.player, member.trainer


def _synthetic(config: TrainConfig, play: int, _: int, opened: ExitStack) -> tuple[Player, Any]:
    plan = plan_crew(
        config.simulator, config.collection, accelerated=False, simulate_cores=(play,), generate_cores=(play,)
    )
    crew = opened.enter_context(Crew(plan))
    player = Player(config, crew, SmallPolicy(1), cores=(play,))  # pyright: ignore[reportArgumentType]
    return player, PacedTrainer(config, _PACE)
