"""Faults during real training: a run that is disturbed at a random moment ends as one that was left alone.

`python -m benchmarks.faults --count 20 --seed 7 --json results.json` repeats what a seed has drawn. Each injection is a
run of the tabletop with worker processes, in a process of its own, which is disturbed and, where that ends it, started
again by the same command. Some play beside training, some are GRPO, some have a player and a rank on Ray; with
`--task libero` simulators are LIBERO's, in their own Python.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from typer import echo

from benchmarks.forks import Forks
from benchmarks.output import write_record
from treadle.reporting.metrics import read_metrics
from treadle.training.checkpoints import list_checkpoints

PATIENCE = 240.0
"""Seconds within which a run must end, or react to a signal."""
SETTINGS = (
    *("iterations=4", "decisions=2", "save_every=1", "device=cpu", "torch_threads=1", "seed=5"),
    *("simulator.slots=4", "simulator.horizon=8", "collection.kind=processes"),
    *("collection.lanes=2", "collection.workers=2", "evaluation.episodes=4"),
    *("evaluation.slots=4", "evaluation.suites=['train']", "evaluation.videos=0", "algorithm.minibatch=8"),
    "algorithm.micro_batch=8",
)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (it is looked at)
VARIANTS: dict[str, tuple[str, ...]] = {
    "in turn": (),
    "beside training": ("overlap=async",),
    "GRPO": ("algorithm.kind=grpo", "algorithm.group_size=2"),
    "on Ray": ("placement.simulate=0", "placement.generate=0", "placement.train=1"),
}
"""Ways of training that are disturbed, with their settings."""
OFTEN = {"in turn": 6, "beside training": 2, "GRPO": 1, "on Ray": 1}
RECIPES = {
    "tabletop": ("quickstart", "simulator.threads=1", "collection.timeout=10"),
    "libero": ("libero-object", "simulator.horizon=16", "collection.timeout=60"),
}
"""Of each task, with settings of its own."""


@dataclass(frozen=True)
class Injection:
    """One fault, drawn from a seed."""

    seed: int
    kind: str
    variant: str
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

    def __init__(self, forks: Forks, folder: Path, settings: Sequence[str]) -> None:
        self.folder = folder / "runs" / "faults"
        command = ["train", *settings, "name=faults", f"output={folder / 'runs'}"]
        self.process = forks.start(command, folder / "output.txt")

    def iterations(self) -> int:
        """How many are done."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else -1

    def children(self) -> list[psutil.Process]:
        """All that it has started."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def workers(self) -> list[psutil.Process]:
        """Its simulators."""
        return [child for child in self.children() if "treadle.workers.worker" in _command(child)]

    def members(self) -> list[psutil.Process]:
        """Its players and ranks on Ray."""
        return [child for child in self.children() if any(word.startswith("ray::Member") for word in _command(child))]

    def end(self) -> int:
        """Its exit code; a run that takes too long is killed, and has none."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
            raise


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _signal_worker(number: signal.Signals) -> Callable[[Disturbed, random.Random], None]:
    def disturb(run: Disturbed, chosen: random.Random) -> None:
        if workers := run.workers():
            with suppress(psutil.NoSuchProcess):
                chosen.choice(workers).send_signal(number)

    return disturb


def _kill_member(run: Disturbed, chosen: random.Random) -> None:
    if members := run.members():
        with suppress(psutil.NoSuchProcess):
            chosen.choice(members).kill()


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
ON_RAY = {"member killed": _kill_member}


def draw(seed: int) -> Injection:
    """The injection of a seed."""
    chosen = random.Random(seed)
    (variant,) = chosen.choices(list(OFTEN), list(OFTEN.values()))
    kind = chosen.choice(sorted(KINDS))
    if variant == "on Ray" and kind == "worker crashes":
        kind = "member killed"
    return Injection(seed, kind, variant, chosen.randrange(4), round(chosen.random(), 3))


def numbers(folder: Path) -> list[dict[str, float]]:
    """What a run's metrics must repeat."""
    skipped = ("time/", "speed/", "idle/", "seconds", "rollout/restarts")
    return [{key: x for key, x in row.items() if not key.startswith(skipped)} for row in read_metrics(folder)]


def inject(forks: Forks, injection: Injection, settings: Sequence[str], expected: list[dict[str, float]]) -> Outcome:
    """Disturb a run, let the same command go on, and compare."""
    began, chosen = time.monotonic(), random.Random(injection.seed + 1)
    with tempfile.TemporaryDirectory(prefix="treadle-faults-") as folder:
        trouble = _disturb(forks, injection, settings, Path(folder), chosen, expected)
        trouble = trouble or _left(Path(folder))
    return Outcome(injection, not trouble, round(time.monotonic() - began, 1), trouble)


def _disturb(
    forks: Forks,
    injection: Injection,
    settings: Sequence[str],
    folder: Path,
    chosen: random.Random,
    expected: list[dict[str, float]],
) -> str:
    run = Disturbed(forks, folder, settings)
    end = time.monotonic() + PATIENCE
    while run.iterations() < injection.iteration and run.process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(injection.delay)
    before, children = max(0, run.iterations()), run.children()
    if run.process.poll() is None:
        (KINDS | ON_RAY)[injection.kind](run, chosen)
    try:
        code = run.end()
        gone, alive = psutil.wait_procs(children, timeout=20)
        if alive:
            return f"{len(alive)} of {len(gone) + len(alive)} processes outlive the trainer"
        if injection.kind.startswith(("worker", "member")) and code:
            return f"exit code {code}"
        kept = len(list_checkpoints(run.folder / "checkpoints"))
        if code and before > 1 and not kept:
            return "no checkpoint is left"
        if code and (code := Disturbed(forks, folder, settings).end()):
            return f"the same command ended with {code}; {_last_lines(folder)}"
    except subprocess.TimeoutExpired:
        return f"no end within {PATIENCE:g} s; {_last_lines(folder)}"
    return "" if numbers(run.folder) == expected else "the numbers are not those of a run that was left alone"


def _last_lines(folder: Path) -> str:
    return f"its last lines: {(folder / 'output.txt').read_text().splitlines()[-3:]}"


def _left(folder: Path) -> str:
    """What a run that has ended has left behind."""
    left = [*folder.rglob(".saving-*"), *folder.rglob(".lock")]
    return f"left behind: {', '.join(map(str, left))}" if left else ""


def alone(forks: Forks, settings: Sequence[str]) -> list[dict[str, float]]:
    """The numbers of a run that nothing disturbs."""
    with tempfile.TemporaryDirectory(prefix="treadle-faults-") as folder:
        run = Disturbed(forks, Path(folder), settings)
        if code := run.end():
            output = (Path(folder) / "output.txt").read_text()[-2000:]
            sys.exit(f"the run that is left alone ended with {code}: {output}")
        return numbers(run.folder)


def settings_of(task: str, scratch: Path) -> list[str]:
    """The recipe of a task, and settings that make it small; where no base ships, it is made."""
    recipe, *own = RECIPES[task]
    if task == "libero":
        base = ("libero-object-base", "demonstrations.episodes=2", "imitation.steps=4", "evaluation.episodes=1")
        command = [sys.executable, "-P", "-m", "treadle.cli", "sft", *base, "name=base", f"output={scratch}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        own.append(f"policy.checkpoint={scratch / 'base' / 'policy'}")
    return [recipe, *SETTINGS, *own]


def main() -> None:
    """Draw and inject, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next has the next number")
    parser.add_argument("--task", choices=sorted(RECIPES), default="tabletop")
    parser.add_argument("--jobs", type=int, default=1, help="injections at a time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    injections = [draw(seed) for seed in range(arguments.seed, arguments.seed + arguments.count)]
    outcomes: list[Outcome] = []
    shared = set(SHARED_MEMORY.iterdir())
    with (
        tempfile.TemporaryDirectory(prefix="treadle-faults-") as scratch,
        Forks() as forks,
        ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        common = settings_of(arguments.task, Path(scratch))
        drawn = sorted({injection.variant for injection in injections})
        settings = {variant: [*common, *VARIANTS[variant]] for variant in drawn}
        expected = dict(zip(drawn, pool.map(lambda variant: alone(forks, settings[variant]), drawn), strict=True))

        def one(injection: Injection) -> Outcome:
            return inject(forks, injection, settings[injection.variant], expected[injection.variant])

        for outcome in pool.map(one, injections):
            outcomes.append(outcome)
            echo(json.dumps(asdict(outcome)))
    left = sorted(str(path) for path in set(SHARED_MEMORY.iterdir()) - shared)
    good = sum(outcome.as_documented for outcome in outcomes)
    report: dict[str, Any] = {
        "task": arguments.task,
        "injections": len(outcomes),
        "as_documented": good,
        "kinds": Counter(outcome.injection.kind for outcome in outcomes),
        "variants": Counter(outcome.injection.variant for outcome in outcomes),
        "shared_memory_left": left,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    write_record(arguments.json, "faults", report)
    echo(f"{good} of {len(outcomes)} as documented")
    sys.exit(bool(left) or good != len(outcomes))


if __name__ == "__main__":
    main()
