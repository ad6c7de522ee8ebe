"""Faults during real training: a run that is disturbed at a random moment ends as one that was left alone.

`python -m benchmarks.faults --count 20 --seed 7 --json results.json` repeats what a seed has drawn. Each injection is a
run of the tabletop with worker processes, in a process of its own, which is disturbed and, where that ends it, started
again by the same command.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from typer import echo

from treadle.files import to_json, write_atomically
from treadle.reporting.metrics import read_metrics
from treadle.training.checkpoints import list_checkpoints

PATIENCE = 120.0
"""Seconds within which a run must end, or react to a signal."""
SETTINGS = (
    *("iterations=4", "decisions=2", "save_every=1", "device=cpu", "torch_threads=1", "seed=5"),
    *("simulator.slots=4", "simulator.horizon=8", "simulator.threads=1", "collection.kind=processes"),
    *("collection.lanes=2", "collection.workers=2", "collection.timeout=20", "evaluation.episodes=4"),
    *("evaluation.slots=4", "evaluation.suites=['train']", "evaluation.videos=0", "algorithm.minibatch=8"),
    *("algorithm.micro_batch=8", "critic.kind=privileged", "critic.warmup_iterations=1"),
)


@dataclass(frozen=True)
class Injection:
    """One fault, drawn from a seed."""

    seed: int
    kind: str
    iteration: int
    """It comes once so many iterations are done; 0 is the evaluation of the base."""
    delay: float
    """Seconds after that."""


@dataclass
class Outcome:
    """What came of an injection."""

    injection: Injection
    as_documented: bool
    seconds: float
    trouble: str = ""


class Disturbed:
    """A run in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs" / "faults"
        command = [sys.executable, "-P", "-m", "treadle.cli", "train", "quickstart", "name=faults", *SETTINGS]
        self._log = (folder / "output.txt").open("a")
        self.process = subprocess.Popen(
            [*command, f"output={folder / 'runs'}"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def iterations(self) -> int:
        """How many are done."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else -1

    def workers(self) -> list[psutil.Process]:
        """Its simulators."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def end(self) -> int:
        """Its exit code; a run that takes too long is killed, and has none."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
            raise
        finally:
            self._log.close()


def _signal_worker(number: signal.Signals) -> Callable[[Disturbed, random.Random], None]:
    def disturb(run: Disturbed, chosen: random.Random) -> None:
        if workers := run.workers():
            with suppress(psutil.NoSuchProcess):
                chosen.choice(workers).send_signal(number)

    return disturb


def _signal_trainer(number: signal.Signals, times: int = 1) -> Callable[[Disturbed, random.Random], None]:
    def disturb(run: Disturbed, chosen: random.Random) -> None:
        for _ in range(times):
            run.process.send_signal(number)
            time.sleep(chosen.random() * 0.05)

    return disturb


def _flip(run: Disturbed, chosen: random.Random) -> None:
    """Kill the trainer, and flip a bit of its newest checkpoint, if there is one before it."""
    run.process.kill()
    run.process.wait(PATIENCE)
    checkpoints = list_checkpoints(run.folder / "checkpoints")
    if len(checkpoints) > 1:
        path = chosen.choice(sorted(path for path in checkpoints[-1].rglob("*") if path.is_file()))
        content = bytearray(path.read_bytes())
        content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        path.write_bytes(content)


KINDS: dict[str, Callable[[Disturbed, random.Random], None]] = {
    "worker killed": _signal_worker(signal.SIGKILL),
    "worker hangs": _signal_worker(signal.SIGSTOP),
    "worker crashes": _signal_worker(signal.SIGSEGV),
    "trainer killed": _signal_trainer(signal.SIGKILL),
    "Ctrl-C": _signal_trainer(signal.SIGINT),
    "Ctrl-C twice": _signal_trainer(signal.SIGINT, 2),
    "SIGTERM": _signal_trainer(signal.SIGTERM),
    "bit flipped": _flip,
}


def draw(seed: int) -> Injection:
    """The injection of a seed."""
    chosen = random.Random(seed)
    return Injection(seed, chosen.choice(sorted(KINDS)), chosen.randrange(4), round(chosen.random(), 3))


def numbers(folder: Path) -> list[dict[str, float]]:
    """What a run's metrics must repeat."""
    skipped = ("time/", "speed/", "idle/", "seconds", "rollout/restarts")
    return [{key: x for key, x in row.items() if not key.startswith(skipped)} for row in read_metrics(folder)]


def inject(injection: Injection, expected: list[dict[str, float]]) -> Outcome:
    """Disturb a run, let the same command go on, and compare."""
    began, chosen = time.monotonic(), random.Random(injection.seed + 1)
    with tempfile.TemporaryDirectory(prefix="treadle-faults-") as folder:
        trouble = _disturb(injection, Path(folder), chosen, expected)
        trouble = trouble or _left(Path(folder))
    return Outcome(injection, not trouble, round(time.monotonic() - began, 1), trouble)


def _disturb(injection: Injection, folder: Path, chosen: random.Random, expected: list[dict[str, float]]) -> str:
    run = Disturbed(folder)
    end = time.monotonic() + PATIENCE
    while run.iterations() < injection.iteration and run.process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(injection.delay)
    before, workers = max(0, run.iterations()), run.workers()
    if run.process.poll() is None:
        KINDS[injection.kind](run, chosen)
    try:
        code = run.end()
        gone, alive = psutil.wait_procs(workers, timeout=10)
        if alive:
            return f"{len(alive)} of {len(gone) + len(alive)} processes outlive the trainer"
        if injection.kind.startswith("worker") and code:
            return f"exit code {code}"
        kept = len(list_checkpoints(run.folder / "checkpoints"))
        if code and before > 1 and not kept:
            return "no checkpoint is left"
        if code and (code := Disturbed(folder).end()):
            return f"the same command ended with {code}"
    except subprocess.TimeoutExpired:
        return f"no end within {PATIENCE:g} s"
    return "" if numbers(run.folder) == expected else "the numbers are not those of a run that was left alone"


def _left(folder: Path) -> str:
    """What a run that has ended has left behind."""
    left = [*folder.rglob(".saving-*"), *folder.rglob(".lock")]
    return f"left behind: {', '.join(map(str, left))}" if left else ""


def main() -> None:
    """Draw and inject, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next has the next number")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="treadle-faults-") as folder:
        alone = Disturbed(Path(folder))
        if code := alone.end():
            sys.exit(
                f"the run that is left alone ended with {code}: {(Path(folder) / 'output.txt').read_text()[-2000:]}"
            )
        expected = numbers(alone.folder)
    outcomes: list[Outcome] = []
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        outcomes.append(inject(draw(seed), expected))
        echo(json.dumps(asdict(outcomes[-1])))
    good = sum(outcome.as_documented for outcome in outcomes)
    report: dict[str, Any] = {
        "injections": len(outcomes),
        "as_documented": good,
        "kinds": Counter(outcome.injection.kind for outcome in outcomes),
        "cpus": os.cpu_count(),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    if arguments.json is not None:
        write_atomically(arguments.json, to_json(report))
    echo(f"{good} of {len(outcomes)} as documented")
    sys.exit(good != len(outcomes))


if __name__ == "__main__":
    main()
