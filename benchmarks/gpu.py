"""Every check that needs a GPU, in one call of under eight minutes: `python -m benchmarks.gpu`, or `make gpu`.

Each check runs in a process of its own and ends at its limit; one that fails is noted with its error, and the others go
on. Where there is no GPU, or with `--cpu`, all of them are rehearsed on the CPU at tiny sizes. Writes
`benchmarks/results/gpu.json`, a rehearsal only what `--json` names. Exits with 1 if a check failed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_task import SkippedError, Task
from benchmarks.output import RESULTS, ROOT, make_table, write_record
from treadle.errors import OutputError, TreadleError
from treadle.reading import read_json

ERROR_CHARACTERS = 3000
"""Of a check's last words that are kept."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that is done on a GPU."""

    name: str
    seconds: float
    """After which it is ended."""
    work: str
    """The function, `module:name`: it takes a Task, notes figures and returns a summary."""


CHECKS = (
    Check("machine", 25, "benchmarks.gpu_runs:machine"),
    Check("tests", 60, "benchmarks.gpu_runs:tests"),
    Check("quickstart", 45, "benchmarks.gpu_runs:quickstart"),
    Check("ray", 60, "benchmarks.gpu_runs:ray"),
    Check("lora", 55, "benchmarks.gpu_large:lora"),
    Check("full", 55, "benchmarks.gpu_large:full"),
    Check("compile", 60, "benchmarks.gpu_large:compiled"),
    Check("rates", 50, "benchmarks.gpu_runs:rates"),
    Check("simulators", 65, "benchmarks.gpu_runs:simulators"),
)
"""In order; `docs/gpu-checks.md` says what each of them shows."""


@dataclass(slots=True)
class Outcome:
    """What came of a check."""

    name: str
    outcome: str
    """`works`, `skipped` or `failed`."""
    seconds: float
    limit: float
    summary: str
    """A line; the reason of one that was skipped."""
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """The last words of one that failed."""


def main(words: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [check.name for check in CHECKS]
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU, although there is a GPU")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CHECK", help=", ".join(names))
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # what the process of a check is asked for
    given = parser.parse_args(words)
    if given.work:
        function, file = given.work
        return work(function, given.cpu, Path(file))
    cpu = given.cpu or not torch.cuda.is_available()
    file = given.json or (None if cpu else RESULTS / "gpu.json")
    try:
        return int(any(each.outcome == "failed" for each in run(given.only, cpu, file)))
    except TreadleError as error:
        Console(stderr=True).print(f"error: {error}", markup=False)
        return 2


def run(names: Sequence[str], cpu: bool, file: Path | None) -> list[Outcome]:
    """Run checks in order, show a table of them, and write it where asked. Raises OutputError."""
    console, outcomes = Console(), list[Outcome]()
    if cpu:
        console.print("This rehearses the checks on the CPU, at tiny sizes: its figures say nothing of a GPU.")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="treadle-gpu-") as folder:
        for check in CHECKS:
            if check.name in names:
                console.print(f"{check.name}: at most {check.seconds:.0f} s", highlight=False)
                outcomes.append(attempt(check, cpu, Path(folder)))
    gpus = next((each.figures.get("gpus") for each in outcomes if each.name == "machine"), None)
    console.print(_table(outcomes))
    for each in outcomes:
        if each.error:
            console.print(f"{each.name}:\n{each.error}\n", markup=False, highlight=False)
    record = {"rehearsal": cpu, "seconds": time.monotonic() - began, "checks": [asdict(each) for each in outcomes]}
    write_record(file, "gpu", record, device="cpu" if cpu else gpus or "cuda")
    if file is not None:
        console.print(f"results: {file}", highlight=False)
    return outcomes


def attempt(check: Check, cpu: bool, folder: Path) -> Outcome:
    """Run a check in a process of its own, which ends with all its children at the limit."""
    file, said = folder / f"{check.name}.json", folder / f"{check.name}.log"
    command = [sys.executable, "-m", "benchmarks.gpu", "--work", check.work, str(file), *["--cpu"] * cpu]
    began, problem = time.monotonic(), None
    with (
        said.open("wb") as log,
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            if code := process.wait(check.seconds):
                problem = f"exit code {code}"
        except subprocess.TimeoutExpired:
            problem = f"not done after {check.seconds:g} s"
            _end(process.pid)
    found = read_json(file, OutputError) if file.exists() else {}
    result = Outcome(check.name, "works", time.monotonic() - began, check.seconds, found.get("summary", ""))
    result.figures = found.get("figures", {})
    if problem is not None:
        words = said.read_text(encoding="utf-8", errors="replace").strip()
        last = words.splitlines()[-1] if words else ""
        result.outcome, result.summary = "failed", f"{problem}: {last}"
        result.error = words[-ERROR_CHARACTERS:]
    elif "skipped" in found:
        result.outcome, result.summary = "skipped", found["skipped"]
    return result


def work(function: str, cpu: bool, file: Path) -> int:
    """The process of a check: what its function finds goes to a file, beside those of other checks."""
    task = Task(cpu, file.parent, file)
    module, _, name = function.partition(":")
    try:
        task.write(summary=getattr(import_module(module), name)(task))
    except SkippedError as reason:
        task.write(skipped=str(reason))
    return 0


def _end(pid: int) -> None:
    """End a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = make_table("checks of a GPU", ("check", "outcome"), ("s", "at most"))
    table.add_column("what was found", overflow="fold")
    colours = {"works": "green", "skipped": "yellow", "failed": "bold red"}
    for each in outcomes:
        mark = f"[{colours[each.outcome]}]{each.outcome}[/]"
        table.add_row(each.name, mark, f"{each.seconds:.1f}", f"{each.limit:.0f}", each.summary.replace("[", r"\["))
    return table


if __name__ == "__main__":
    sys.exit(main())
