"""Control steps per second of a simulator, beside the cost of one policy forward at the same batch.

Shapes: B slots, C control steps per decision, A action dimensions.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from treadle.benchmarks.timing import rounds_in_turn, time_in_turn, time_rounds
from treadle.config.loading import checkpoint_of, read_config, resolve_checkpoint
from treadle.config.schema import Section, SimulatorConfig
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.files import to_json, write_atomically
from treadle.policies import load_policy
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.machine import describe_machine
from treadle.simulators.bare import bare_loop
from treadle.simulators.build import build_simulator, simulator_factory
from treadle.simulators.host import Host, one_after_another
from treadle.simulators.protocol import Simulator

SLOTS = (1, 4, 16, 64, 256)
THREADS = (1, 2)
PROCESSES = (1, 2)
"""Of a simulator in an environment of its own; each has one slot, for the slots of a process take turns."""
CHUNK = 4
"""Control steps between two frames where a frame is drawn per decision."""
STEPS = 8
"""Control steps of one round, from a reset on; a multiple of CHUNK."""
_NEVER = 10**9


class SimulatorBenchConfig(Section):
    """What `treadle bench simulator` takes as key=value."""

    simulator: SimulatorConfig = SimulatorConfig()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. Rates are control steps per second over all slots, medians over rounds; resets are not counted."""

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


@dataclass(frozen=True, slots=True)
class Overhead:
    """One slot, with frames after every control step, through the host and where it usually runs, beside the same
    simulator's bare loop (`treadle.simulators.bare`); they take turns.
    """

    control_steps_per_second: float
    bare_control_steps_per_second: float
    overhead_share: float
    """Time of the host beyond that of the bare loop, as a share of the latter; negative where the host is faster."""


def run(
    name: str,
    json: Path | None,
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    slots: Sequence[int] = (),
    threads: Sequence[int] = (),
    seconds: float = 1.0,
) -> list[Measurement]:
    """Measure, print a table and write JSON where asked.

    The policy beside it is `checkpoint`, by default that of the simulator's recipe; where that is not packaged, it is
    left out. `overrides` have keys of section `simulator`. `slots` and `threads` are by default SLOTS and THREADS; a
    simulator in an environment of its own has one slot and one thread in each of PROCESSES. `seconds` is the least time
    spent on each figure. Raises ConfigError, SimulatorError, CheckpointError or OutputError.
    """
    config = read_config(SimulatorBenchConfig, None, [*overrides, f"simulator.name={name}"]).simulator
    checkpoint = checkpoint or checkpoint_of(name)
    policy = None if checkpoint is None else load_policy(resolve_checkpoint(checkpoint), device="cpu")
    remote = simulator_factory(config).interpreter is not None
    setups = (
        [config.model_copy(update={"slots": n, "threads": 1, "processes": n}) for n in slots or PROCESSES]
        if remote
        else [config.model_copy(update={"slots": n, "threads": t}) for t in threads or THREADS for n in slots or SLOTS]
    )
    before = torch.get_num_threads()
    try:
        groups = [setups] if remote else [[setup] for setup in setups]
        rows = [row for group in groups for row in _measure(group, policy, seconds)]
        torch.set_num_threads(before)
        overhead = _overhead(config.model_copy(update={"slots": 1, "threads": 1}), seconds)
    finally:
        torch.set_num_threads(before)
    console = Console()
    console.print(_table(name, rows))
    console.print(
        f"host {overhead.control_steps_per_second:,.1f} and bare loop {overhead.bare_control_steps_per_second:,.1f} "
        f"control steps/s with frames: overhead {overhead.overhead_share:.1%}"
    )
    if json is not None:
        result = {
            "benchmark": "simulator",
            "simulator": name,
            "options": config.options,
            "checkpoint": checkpoint,
            "command": shlex.join(["treadle", *sys.argv[1:]]),
            "machine": describe_machine(),
            "steps_per_decision": CHUNK,
            **asdict(overhead),
            "measurements": [asdict(row) for row in rows],
        }
        write_atomically(json, to_json(result) + "\n")
    return rows


def _measure(configs: Sequence[SimulatorConfig], policy: Policy | None, seconds: float) -> list[Measurement]:
    """Of simulators that take turns, so that what else the machine does meets all of them."""
    with ExitStack() as stack:
        playing = [stack.enter_context(closing(_Playing(config))) for config in configs]
        kinds = ((STEPS, False), (CHUNK, True), (1, True))
        times = [rounds_in_turn([(p.reset, partial(p.play, *kind)) for p in playing], seconds) for kind in kinds]
        forwards = [p.forward(policy, seconds) for p in playing]
    rows: list[Measurement] = []
    for at, (config, forward) in enumerate(zip(configs, forwards, strict=True)):
        without, per_decision, per_step = (config.slots * STEPS / float(np.median(rounds[at])) for rounds in times)
        played = min(len(rounds[at]) for rounds in times)
        processes, threads = config.processes or 0, config.threads or 1
        rows.append(Measurement(config.slots, processes, threads, without, per_decision, per_step, forward, played))
    return rows


class _Playing:
    """A simulator whose slots all play."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._simulator = build_simulator(config)
        self._threads = config.threads or 1
        spec, count = self._simulator.spec, config.slots
        self._slots, self._scenarios = np.arange(count), _scenarios(self._simulator)
        self._seen = Observation.empty(
            count, len(spec.cameras), spec.height, spec.width, spec.proprioception_dim, spec.state_dim
        )
        self._actions = _small_motions(count, spec.action_dim)

    def reset(self) -> None:
        """Put all slots at the start of their scenarios."""
        self._simulator.reset(self._slots, self._scenarios)

    def play(self, per_call: int, observe: bool) -> None:
        """STEPS control steps, `per_call` of them at a time, with a frame after each call where they are observed."""
        limits = np.full(len(self._slots), per_call, np.intp)
        for start in range(0, STEPS, per_call):
            self._simulator.step(self._slots, self._actions[:, start : start + per_call], limits)
            if observe:
                self._simulator.observe(self._slots, self._seen)

    def forward(self, policy: Policy | None, seconds: float) -> float | None:
        """Seconds of one decision for all slots."""
        return None if policy is None else _forward(policy, self._seen, self._threads, seconds)

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()


def _overhead(config: SimulatorConfig, seconds: float) -> Overhead:
    simulator = build_simulator(config)
    try:
        scenario = _scenarios(simulator)[0]
        host = Host(simulator, one_after_another([scenario]), _NEVER)
        host.start()
        actions = _small_motions(1, simulator.spec.action_dim)

        def through_host() -> None:
            for step in range(STEPS):
                host.step(actions[:, step : step + 1])

        through_host()
        # The loop of a simulator without one of its own has its slot from here on; both stay in the same episode.
        bare = bare_loop(simulator, scenario)
        bare.play(actions[0])
        own, least = time_in_turn([through_host, lambda: bare.play(actions[0])], seconds)
        bare.close()
    finally:
        simulator.close()
    return Overhead(STEPS / own, STEPS / least, own / least - 1)


def _scenarios(simulator: Simulator) -> Sequence[Scenario]:
    """The first of the training suite, at most one a slot."""
    return simulator.scenarios(simulator.suites()[0], "evaluation")[: simulator.slots]


def _small_motions(slots: int, action_dim: int) -> NDArray[np.float32]:
    """Random actions [slots, STEPS, A] that solve nothing, so that every slot plays every step."""
    return np.random.default_rng(0).normal(0, 0.01, (slots, STEPS, action_dim)).astype(np.float32)


def _forward(policy: Policy, seen: Observation, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    sampling = Sampling()

    def decide() -> None:
        policy.act(policy.prepare(seen.frames, seen.instructions, seen.proprioception), sampling)

    return float(np.median(time_rounds(decide, seconds)))


def _table(name: str, rows: Iterable[Measurement]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{name}: control steps per second", title_justify="left")
    columns = (
        "slots",
        "processes",
        "threads",
        "no rendering",
        f"frame / {CHUNK} steps",
        "frame / step",
        "policy forward",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        forward = "-" if row.policy_forward_seconds is None else f"{row.policy_forward_seconds * 1000:.1f} ms"
        rates = (row.without_rendering, row.frame_per_decision, row.frame_per_step)
        numbers = (str(number) for number in (row.slots, row.processes, row.threads))
        table.add_row(*numbers, *(f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}" for rate in rates), forward)
    return table
