"""Control steps per second of a simulator, beside the cost of one policy forward at the same batch.

Shapes: B slots, C control steps per decision, A action dimensions.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import chain, cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.bare import bare_loop
from benchmarks.output import make_table, write_record
from benchmarks.packaged import checkpoint_of
from benchmarks.playing import (
    CHUNK,
    LONGER,
    STEPS,
    Loops,
    Playing,
    PlayingHere,
    PlayingInWorkers,
    Work,
    first_scenario,
)
from benchmarks.timing import rounds_in_turn
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import read_config
from treadle.config.schema import Positive, Section, SimulatorConfig
from treadle.errors import ConfigError
from treadle.policies import load_policy
from treadle.policies.protocol import Policy
from treadle.simulators.build import simulator_factory

SLOTS = (1, 4, 16, 64, 256)
THREADS = (1, 2)
PROCESSES = (1, 2)
"""Of a simulator in an environment of its own."""


class SimulatorBenchConfig(Section):
    """What `treadle bench simulator` takes as key=value."""

    simulator: SimulatorConfig = SimulatorConfig()
    slots_per_process: Positive = 1
    """Of a simulator in an environment of its own. They take turns, so that a call takes as many times longer."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. Rates are control steps per second over all slots, medians over rounds and then over starts; resets are
    not counted.
    """

    slots: int
    processes: int
    """Worker processes, 0 where the simulator is in this one."""
    threads: int
    without_rendering: float
    frame_per_decision: float
    """A frame for every CHUNK control steps."""
    frame_per_step: float
    policy_forward_seconds: float | None
    """One decision for all slots: prompts, vision and language model, torch with the same threads."""
    rounds: int
    """Of all starts."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """One slot, with frames after every control step, through the host and where it usually runs, beside the same
    simulator's bare loop (`benchmarks.bare`). They take turns, a control step each, with the same actions.
    """

    control_steps_per_second: float
    bare_control_steps_per_second: float
    overhead_share: float
    """Time of the host beyond that of the bare loop, as a share of the latter, the median over pairs of steps; negative
    where the host is faster.
    """
    overhead_interval: tuple[float, float]
    """Where that median lies, with 95 % confidence."""
    pairs: int


@dataclass(frozen=True, slots=True)
class Speedup:
    """Control steps per second in several processes over those in the first row's, which take turns; medians over
    turns and then over starts.
    """

    processes: int
    without_rendering: float
    frame_per_decision: float
    frame_per_step: float
    lanes: float
    """As training plays them, a frame per decision: each process has a lane of its own, and waits for no other."""
    bare_loops: float
    """So many bare loops that know nothing of each other, each in a process and with a frame for every step, over one
    of them alone: what the machine allows.
    """
    turns: int
    """Of all starts."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What simulators that were started together gave."""

    rows: list[Measurement]
    speedups: list[Speedup]
    own: list[float]
    """Seconds of the host's control steps, one slot, in turn with those of the bare loop."""
    bare: list[float]

    @property
    def overhead(self) -> Overhead:
        """Over all of its steps."""
        shares = np.divide(self.own, self.bare) - 1
        rates = (1 / float(np.median(self.own)), 1 / float(np.median(self.bare)))
        return Overhead(*rates, float(np.median(shares)), interval_of_median(shares), len(shares))


_Figures = TypeVar("_Figures", Measurement, Speedup)
_Setup = tuple[SimulatorConfig, int]
"""A simulator, and the worker processes that its slots are divided among: 0 is in this one."""


def run(
    name: str,
    json: Path | None,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    slots: Sequence[int] = (),
    threads: Sequence[int] = (),
    seconds: float = 1.0,
    starts: int = 1,
) -> list[Measurement]:
    """Measure, print a table and write JSON where asked.

    The policy beside it is `checkpoint`, by default that of the simulator's recipe; where that is not packaged, it is
    left out. `overrides` have keys of SimulatorBenchConfig. `slots` and `threads` are by default SLOTS and THREADS; a
    simulator in an environment of its own has one thread in each of so many processes, by default PROCESSES. `seconds`
    is the least time spent on each figure of a start; `starts` times everything is started anew, so that what a process
    meets by chance for as long as it lives does not decide. Raises ConfigError, SimulatorError, CheckpointError or
    OutputError.
    """
    settings = read_config(SimulatorBenchConfig, None, [*overrides, f"simulator.name={name}"])
    config, each = settings.simulator, settings.slots_per_process
    checkpoint = checkpoint or checkpoint_of(name)
    policy = None if checkpoint is None else load_policy(resolve_checkpoint(checkpoint), device="cpu")
    remote = simulator_factory(config).interpreter is not None
    if each > 1 and not remote:
        raise ConfigError(
            f"slots_per_process={each} with simulator {name!r}, which plays in this process; take --slots {each}"
        )
    groups: list[list[_Setup]]
    if remote:
        groups = [[(_sized(config, n * each), n) for n in slots or PROCESSES]]
    else:
        groups = [[(_sized(config, n, t), 0)] for t in threads or THREADS for n in slots or SLOTS]
    console = Console()
    before = torch.get_num_threads()
    started: list[_Start] = []
    try:
        for number in range(1, starts + 1):
            if starts > 1:
                console.print(f"start {number} of {starts}")
            started.append(_start(groups, policy, seconds))
            if json is not None:
                # After each, for they take minutes and are not lost when a later one is cut short.
                result = {
                    "simulator": name,
                    "options": config.options,
                    "checkpoint": checkpoint,
                    "steps_per_decision": CHUNK,
                    **_written(started),
                    "starts": [_written([start]) for start in started],
                }
                write_record(json, "simulator", result)
    finally:
        torch.set_num_threads(before)
    whole = _over(started)
    console.print(_table(name, whole.rows))
    for speedup in whole.speedups:
        console.print(
            f"{speedup.processes} processes to {whole.rows[0].processes}: {speedup.without_rendering:.2f}, "
            f"{speedup.frame_per_decision:.2f}, {speedup.frame_per_step:.2f}; in lanes of their own: "
            f"{speedup.lanes:.2f}; bare loops: {speedup.bare_loops:.2f}"
        )
    overhead = whole.overhead
    low, high = overhead.overhead_interval
    console.print(
        f"host {overhead.control_steps_per_second:,.1f} and bare loop {overhead.bare_control_steps_per_second:,.1f} "
        f"control steps/s with frames: overhead {overhead.overhead_share:.1%} ({low:.1%} to {high:.1%})"
    )
    return whole.rows


def _sized(config: SimulatorConfig, slots: int, threads: int = 1) -> SimulatorConfig:
    return config.model_copy(update={"slots": slots, "threads": threads})


def _open(setup: _Setup) -> Playing:
    config, workers = setup
    return PlayingInWorkers(config, workers) if workers else PlayingHere(config)


def _start(groups: Sequence[Sequence[_Setup]], policy: Policy | None, seconds: float) -> _Start:
    """Start everything and measure it; the members of a group take turns."""
    threads = torch.get_num_threads()
    measured = [_measure(group, policy, seconds) for group in groups]
    torch.set_num_threads(threads)
    config, workers = groups[0][0]
    own, bare = _host_and_bare_loop((_sized(config, 1), min(workers, 1)), seconds)
    rows = [row for group, _ in measured for row in group]
    return _Start(rows, [speedup for _, group in measured for speedup in group], own, bare)


def _over(starts: Sequence[_Start]) -> _Start:
    """Several as one."""
    return _Start(
        [over_starts(each) for each in zip(*(start.rows for start in starts), strict=True)],
        [over_starts(each) for each in zip(*(start.speedups for start in starts), strict=True)],
        list(chain(*(start.own for start in starts))),
        list(chain(*(start.bare for start in starts))),
    )


def _written(starts: Sequence[_Start]) -> dict[str, Any]:
    """What is written of them."""
    whole = _over(starts)
    return {
        **asdict(whole.overhead),
        "measurements": [asdict(row) for row in whole.rows],
        "speedups": [asdict(speedup) for speedup in whole.speedups],
    }


def over_starts(each: Sequence[_Figures]) -> _Figures:
    """Medians of what several starts of the same simulators gave, with all their rounds."""

    def of(name: str) -> Any:
        values = [getattr(one, name) for one in each]
        if name in ("rounds", "turns"):
            return sum(values)
        return float(np.median(values)) if isinstance(values[0], float) else values[0]

    return replace(each[0], **{field.name: of(field.name) for field in fields(each[0])})


def _measure(
    setups: Sequence[_Setup], policy: Policy | None, seconds: float
) -> tuple[list[Measurement], list[Speedup]]:
    """Of simulators that take turns, so that what else the machine does meets all of them. The first is the one that
    speedups are over; where there is no other, there are none.
    """
    counts = [workers for _, workers in setups]
    with ExitStack() as stack:
        playing = [stack.enter_context(closing(_open(setup))) for setup in setups]
        unseen = [each.unseen for each in playing]
        per_decision = [each.with_frames(CHUNK) for each in playing]
        per_step = [each.with_frames(1) for each in playing]
        in_lanes: list[Work] = []
        if len(setups) > 1:
            lanes = [stack.enter_context(closing(PlayingInWorkers(config, n, lanes=n))) for config, n in setups]
            in_lanes += [(_nothing, each.play_on) for each in lanes]
            loops = stack.enter_context(closing(Loops(setups[0][0], max(counts))))
            per_step += [(_nothing, partial(loops.play, count)) for count in (1, *counts[1:])]
        times = [rounds_in_turn(works, seconds) for works in (unseen, per_decision, per_step, in_lanes) if works]
        forwards = [each.forward(policy, seconds) for each in playing]
    rows: list[Measurement] = []
    for at, ((config, workers), forward) in enumerate(zip(setups, forwards, strict=True)):
        rounds = [each[at] for each in times[:3]]
        steps = [config.slots * count * STEPS for count in (LONGER, 1, 1)]
        rates = (played / float(np.median(spent)) for played, spent in zip(steps, rounds, strict=True))
        without, decision, step = rates
        turns = min(len(spent) for spent in rounds)
        rows.append(Measurement(config.slots, workers, config.threads, without, decision, step, forward, turns))
    speedups: list[Speedup] = []
    apart = times[2][len(setups) :]
    for at, row in enumerate(rows[1:], start=1):
        without, decision, step, lane = (faster(each[0], each[at], row.slots / rows[0].slots) for each in times)
        bare = faster(apart[0], apart[at], counts[at])
        speedups.append(Speedup(counts[at], without, decision, step, lane, bare, len(apart[0])))
    return rows, speedups


def faster(one: Sequence[float], many: Sequence[float], work: float) -> float:
    """How much faster `many` goes than `one`, of whose work each of its rounds does so many times as much."""
    return float(np.median(work * np.divide(one, many)))


def _nothing() -> None:
    pass


def _host_and_bare_loop(setup: _Setup, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each control step of the one and of the other, in turn."""
    with closing(_open(setup)) as playing:
        playing.begin(1)

        def in_turn(play: Callable[[NDArray[np.float32]], object]) -> Callable[[], object]:
            following = cycle(range(STEPS))
            return lambda: play(playing.actions[:, (at := next(following)) : at + 1])

        # The loop of a simulator without one of its own has its slot from here on; both stay in the same episode.
        bare = bare_loop(playing.simulator, first_scenario(playing.simulator))
        works = (in_turn(playing.step), in_turn(lambda chunk: bare.play(chunk[0])))
        own, least = rounds_in_turn([(_nothing, work) for work in works], seconds)
        bare.close()
    return own, least


def interval_of_median(
    values: NDArray[np.float64], confidence: float = 0.95, samples: int = 1000
) -> tuple[float, float]:
    """Bootstrapped: between which values the medians of samples drawn again from `values` are."""
    drawn = np.random.default_rng(0).choice(values, (samples, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _table(name: str, rows: Iterable[Measurement]) -> Table:
    columns = (
        "slots",
        "processes",
        "threads",
        "no rendering",
        f"frame / {CHUNK} steps",
        "frame / step",
        "policy forward",
    )
    table = make_table(f"{name}: control steps per second", [], columns)
    for row in rows:
        forward = "-" if row.policy_forward_seconds is None else f"{row.policy_forward_seconds * 1000:.1f} ms"
        rates = (row.without_rendering, row.frame_per_decision, row.frame_per_step)
        numbers = (str(number) for number in (row.slots, row.processes, row.threads))
        table.add_row(*numbers, *(f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}" for rate in rates), forward)
    return table
