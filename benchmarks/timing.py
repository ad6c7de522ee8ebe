"""Seconds and memory of a piece of work."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

LONG_TURN = 15.0


def time_once(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def time_rounds(work: Callable[[], object], seconds: float, before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each round of `work`, at least three, until their sum reaches `seconds`; one before them warms up.

    `before` runs before each round and is not counted.
    """
    return rounds_in_turn([(before, work)], seconds)[0]


def rounds_in_turn(
    works: Sequence[tuple[Callable[[], object], Callable[[], object]]], seconds: float
) -> list[list[float]]:
    """As `time_rounds`, of several pairs of `before` and `work` that take turns, until the first has had `seconds`."""
    for before, work in works:
        before()
        work()
    times: list[list[float]] = [[] for _ in works]
    while len(times[0]) < 3 or sum(times[0]) < seconds:
        for (before, work), spent in zip(works, times, strict=True):
            before()
            spent.append(time_once(work))
    return times


def time_in_turn(works: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each of `works`, which take turns, so that what else the machine does meets all of them.

    At least three turns, or two of more than `LONG_TURN` seconds, until the first has had `seconds`. There is no turn
    to warm up.
    """
    times: list[list[float]] = [[] for _ in works]
    start = time.perf_counter()
    while len(times[0]) < 3 or sum(times[0]) < seconds:
        for work, spent in zip(works, times, strict=True):
            spent.append(time_once(work))
        if len(times[0]) > 1 and time.perf_counter() - start > 2 * LONG_TURN:
            break
    return [median(spent) for spent in times]


def synchronize() -> None:
    """Wait for the GPU, where there is one in use."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(work: Callable[[], object], device: torch.device) -> float:
    """Peak memory in MB while `work` runs: allocated on a GPU, resident in this process on a CPU.

    A system that cannot reset the peak of a process (other than Linux) gives the resident memory at the end.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e6
    if not _CLEAR.exists():
        work()
        return psutil.Process().memory_info().rss / 1e6
    _CLEAR.write_text("5")
    work()
    peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024 / 1e6
