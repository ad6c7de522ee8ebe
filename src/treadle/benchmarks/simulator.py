"""Control steps per second of a simulator, beside the cost of one policy forward at the same batch.

Shapes: B slots, C control steps per decision, A action dimensions.
"""

import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from treadle.benchmarks.timing import time_rounds
from treadle.config.loading import resolve_checkpoint
from treadle.config.schema import PolicyConfig, SimulatorConfig
from treadle.data.observation import Observation
from treadle.files import to_json, write_atomically
from treadle.policies import load_policy
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.machine import describe_machine
from treadle.simulators.build import build_simulator

SLOTS = (1, 4, 16, 64, 256)
THREADS = (1, 2)
CHUNK = 4
"""Control steps between two frames where a frame is drawn per decision."""
STEPS = 8
"""Control steps of one round, from a reset on; a multiple of CHUNK."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. Rates are control steps per second over all slots, medians over rounds; resets are not counted."""

    slots: int
    threads: int
    without_rendering: float
    frame_per_decision: float
    """A frame for every CHUNK control steps."""
    frame_per_step: float
    policy_forward_seconds: float | None
    """One decision for all slots: prompts, vision and language model, torch with the same threads."""
    rounds: int


def run(
    name: str,
    json: Path | None,
    checkpoint: str | None = PolicyConfig().checkpoint,
    slots: Iterable[int] = SLOTS,
    threads: Iterable[int] = THREADS,
    seconds: float = 1.0,
) -> list[Measurement]:
    """Measure, print a table and write JSON where asked; without a checkpoint the policy is left out.

    `seconds` is the least time spent on each figure. Raises ConfigError, CheckpointError or OutputError.
    """
    policy = None if checkpoint is None else load_policy(resolve_checkpoint(checkpoint), device="cpu")
    before = torch.get_num_threads()
    try:
        rows = [_measure(name, policy, n, used, seconds) for used in threads for n in slots]
    finally:
        torch.set_num_threads(before)
    Console().print(_table(name, rows))
    if json is not None:
        result = {
            "benchmark": "simulator",
            "simulator": name,
            "checkpoint": checkpoint,
            "command": shlex.join(["treadle", *sys.argv[1:]]),
            "machine": describe_machine(),
            "steps_per_decision": CHUNK,
            "measurements": [asdict(row) for row in rows],
        }
        write_atomically(json, to_json(result) + "\n")
    return rows


def _measure(name: str, policy: Policy | None, count: int, threads: int, seconds: float) -> Measurement:
    simulator = build_simulator(SimulatorConfig(name=name, slots=count, threads=threads))
    try:
        spec, slots = simulator.spec, np.arange(count)
        scenarios = simulator.scenarios(simulator.suites()[0], "evaluation")[:count]
        seen = Observation.empty(
            count, len(spec.cameras), spec.height, spec.width, spec.proprioception_dim, spec.state_dim
        )
        # Small random motions: nothing is solved, so every slot plays every step.
        actions = np.random.default_rng(0).normal(0, 0.01, (count, STEPS, spec.action_dim)).astype(np.float32)

        def play(per_call: int, observe: bool) -> None:
            limits = np.full(count, per_call, np.intp)
            for start in range(0, STEPS, per_call):
                simulator.step(slots, actions[:, start : start + per_call], limits)
                if observe:
                    simulator.observe(slots, seen)

        def reset() -> None:
            simulator.reset(slots, scenarios)

        kinds = ((STEPS, False), (CHUNK, True), (1, True))
        times = [time_rounds(lambda kind=kind: play(*kind), seconds, reset) for kind in kinds]
        without, per_decision, per_step = (count * STEPS / float(np.median(rounds)) for rounds in times)
        simulator.observe(slots, seen)
    finally:
        simulator.close()
    forward = None if policy is None else _forward(policy, seen, threads, seconds)
    return Measurement(count, threads, without, per_decision, per_step, forward, min(len(rounds) for rounds in times))


def _forward(policy: Policy, seen: Observation, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    sampling = Sampling()

    def decide() -> None:
        policy.act(policy.prepare(seen.frames, seen.instructions, seen.proprioception), sampling)

    return float(np.median(time_rounds(decide, seconds)))


def _table(name: str, rows: Iterable[Measurement]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{name}: control steps per second", title_justify="left")
    columns = ("slots", "threads", "no rendering", f"frame / {CHUNK} steps", "frame / step", "policy forward")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        forward = "-" if row.policy_forward_seconds is None else f"{row.policy_forward_seconds * 1000:.1f} ms"
        rates = (row.without_rendering, row.frame_per_decision, row.frame_per_step)
        table.add_row(str(row.slots), str(row.threads), *(f"{rate:,.0f}" for rate in rates), forward)
    return table
