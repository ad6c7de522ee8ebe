"""A run that goes on for an hour: whether memory, open files, processes and what lies on the disk stay as they are.

`python -m benchmarks.soak --minutes 60 --json results.json`. It is the quickstart with worker processes and few slots,
evaluations in between, and a checkpoint every ten iterations, of which two are kept; it ends by Ctrl-C.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from typer import echo

from benchmarks.output import write_record
from treadle.reporting.metrics import read_metrics

SETTINGS = (
    *("quickstart", "iterations=1000000", "save_every=10", "keep_checkpoints=2", "evaluation.every=25"),
    *("device=cpu", "torch_threads=1", "simulator.threads=1", "simulator.slots=32", "collection.kind=processes"),
    *("collection.workers=2", "collection.lanes=2", "evaluation.suites=train", "evaluation.episodes=32"),
    *("evaluation.slots=32", "evaluation.videos=0"),
)
PERIOD = 5.0
"""Seconds between two looks at the run."""
ROOM = {"memory_mb": 0.03, "open_files": 0.0, "processes": 0.0, "files": 0.0, "shared_memory_mb": 0.0}
"""By what share of it each number may grow from the second quarter of the time to the last."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (it is looked at)


def look(process: psutil.Process, folder: Path) -> dict[str, float]:
    """The numbers that must not grow, of a process and all that it has started."""
    found = dict.fromkeys(ROOM, 0.0)
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess), each.oneshot():
            found["memory_mb"] += each.memory_full_info().uss / 1e6
            found["open_files"] += each.num_fds()
            found["processes"] += 1
    # An evaluation while training is kept, so its files are more each time.
    found["files"] = sum(1 for path in folder.rglob("*") if path.parent.name != "evaluation")
    for path in SHARED_MEMORY.iterdir():
        with suppress(FileNotFoundError):
            found["shared_memory_mb"] += path.stat().st_size / 1e6
    return found


def grown(rows: list[dict[str, float]]) -> dict[str, float]:
    """By what share the median of each number is larger in the last quarter than in the second."""
    quarter = len(rows) // 4
    early, late = rows[quarter : 2 * quarter], rows[-quarter:]
    middles = {name: (median(row[name] for row in early), median(row[name] for row in late)) for name in ROOM}
    return {name: round(after / before - 1, 4) if before else after for name, (before, after) in middles.items()}


def main() -> None:
    """Let it run, look at it, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="treadle-soak-") as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-P", "-m", "treadle.cli", "train", *SETTINGS, "name=soak", f"output={folder}"]
        with (folder / "output.txt").open("w") as log:
            run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            end = time.monotonic() + 60 * arguments.minutes
            while time.monotonic() < end and run.poll() is None:
                with suppress(psutil.NoSuchProcess):
                    rows.append(look(psutil.Process(run.pid), folder))
                time.sleep(PERIOD)
            run.send_signal(signal.SIGINT)
            code = run.wait(300)
        iterations = len(read_metrics(folder / "soak"))
    growth = grown(rows)
    steady = {name: share <= ROOM[name] for name, share in growth.items()}
    report: dict[str, Any] = {
        "minutes": arguments.minutes,
        "iterations": iterations,
        "exit_code": code,
        "growth": growth,
        "steady": steady,
        "looks": [{name: round(x, 1) for name, x in row.items()} for row in rows[:: max(1, len(rows) // 120)]],
    }
    write_record(arguments.json, "soak", report)
    echo(f"{iterations} iterations in {arguments.minutes:g} minutes; growth: {growth}")
    sys.exit(code != 130 or not all(steady.values()))


if __name__ == "__main__":
    main()
