"""What an exchange between a simulator and a policy costs when neither costs anything."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.collect import open_collector
from benchmarks.output import make_table, write_record
from benchmarks.small_policy import SmallPolicy
from treadle.cores import usable_cores
from treadle.simulators.factory import SimulatorFactory
from treadle.workers.crew import CrewPlan

SLOTS = (16, 32, 64, 128, 256, 512, 1024)
FRAME, LARGE_FRAME = 64, 224
SPLITS = ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
"""Lanes and workers that the environments are also divided among."""
_HORIZON = 200
_WARM_UP = 3
"""Rounds that are not counted."""

Kind = Literal["threads", "processes"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One row of the table."""

    slots: int
    lanes: int
    workers: int
    kind: Kind
    frame_size: int
    """Side of the frames in pixels; 1 where the observation is the vector alone."""
    milliseconds: float
    """For one decision of every slot and what comes of it, the median over rounds."""
    simulator_milliseconds: float
    """Of it, the simulator's own, where it is: the time in its calls, writing frames included."""
    policy_milliseconds: float
    """Of it, where neither the simulator nor the exchange is at work: reading the frames, deciding, storing it all."""


def run(
    json: Path | None,
    slots: int = 64,
    table: Iterable[int] = SLOTS,
    splits: Iterable[tuple[int, int]] = SPLITS,
    seconds: float = 0.5,
) -> list[Exchange]:
    """Measure, print a table and write JSON where asked. `seconds` is the least time spent on each figure.

    Raises OutputError.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _rows(slots, table, splits, seconds)
    finally:
        torch.set_num_threads(before)
    Console().print(_table(rows))

    def cost(kind: Kind, frame: int) -> Exchange:
        return next(
            row
            for row in rows
            if (row.slots, row.lanes, row.workers, row.kind, row.frame_size) == (slots, 1, 1, kind, frame)
        )

    large = cost("processes", LARGE_FRAME)
    write_record(
        json,
        "exchange",
        {
            "slots": slots,
            "in_process_ms": cost("threads", 1).milliseconds,
            "worker_ms": cost("processes", 1).milliseconds,
            "frames_in_process_ms": cost("threads", FRAME).milliseconds,
            "frames_worker_ms": cost("processes", FRAME).milliseconds,
            "large_frames_handed_over_ms": large.milliseconds
            - large.simulator_milliseconds
            - large.policy_milliseconds,
            "exchanges": [asdict(row) for row in rows],
        },
    )
    return rows


def _rows(slots: int, table: Iterable[int], splits: Iterable[tuple[int, int]], seconds: float) -> list[Exchange]:
    kinds: tuple[Kind, ...] = ("threads", "processes")
    rows = [
        measure(count, 1, 1, kind, frame, seconds)
        for count in sorted({*table, slots})
        for kind in kinds
        for frame in (1, FRAME)
    ]
    rows.append(measure(slots, 1, 1, "processes", LARGE_FRAME, seconds))
    fitting = [(lanes, workers) for lanes, workers in splits if max(lanes, workers) <= slots]
    return rows + [measure(slots, *split, kind, 1, seconds) for split in fitting for kind in kinds]


def measure(slots: int, lanes: int, workers: int, kind: Kind, frame: int, seconds: float) -> Exchange:
    """The cost of an exchange; the first rounds warm up."""
    factory = SimulatorFactory("benchmarks.paced:PacedSimulator", {"horizon": _HORIZON, "image_size": frame})
    # Threads of one interpreter take turns, for which one core wakes them soonest; processes have one each.
    cores = usable_cores()
    first = cores[:1]
    simulate = first if kind == "threads" else cores[1:] or first
    plan = CrewPlan(factory, slots, lanes=lanes, workers=workers, kind=kind, cores=simulate, timeout=60.0)
    rounds: list[tuple[float, float, float]] = []
    decisions = 50
    policy: Any = SmallPolicy(frame)
    with open_collector(plan, policy, _HORIZON, cores=first) as collector:
        for _ in range(_WARM_UP):
            collector.collect(decisions, version=0)
        while len(rounds) < 3 or sum(whole for whole, *_ in rounds) < seconds:
            spent = collector.collect(decisions, version=0).seconds
            rounds.append((spent["collect"], spent["simulate"], spent["generate"]))
    whole, own, others = (np.median(rounds, axis=0) / decisions * 1000).tolist()
    return Exchange(slots, lanes, workers, kind, frame, whole, own, others)


def _table(rows: Iterable[Exchange]) -> Table:
    columns = ("slots", "lanes", "workers", "kind", "frames", "ms", "simulator", "policy", "us per slot")
    table = make_table("one exchange, milliseconds", [], columns)
    for row in rows:
        frame = "none" if row.frame_size == 1 else f"{row.frame_size} px"
        table.add_row(
            *(str(x) for x in (row.slots, row.lanes, row.workers, row.kind, frame)),
            f"{row.milliseconds:.2f}",
            f"{row.simulator_milliseconds:.2f}",
            f"{row.policy_milliseconds:.2f}",
            f"{row.milliseconds / row.slots * 1000:.1f}",
        )
    return table
