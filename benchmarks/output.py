"""What every benchmark leaves: a table for people, and a record for programs. Imports neither torch nor a simulator."""

import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.files import to_json, write_atomically
from treadle.reporting.machine import describe_machine

if TYPE_CHECKING:
    from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def write_record(
    path: Path | None,
    benchmark: str,
    figures: Mapping[str, Any],
    packages: Iterable[str] = (),
    device: str = "cpu",
) -> dict[str, Any]:
    """The figures with what made them: command, commit, machine with its `device`, and versions, those of further
    `packages` too. Written as JSON where a file is asked for. Raises OutputError.
    """
    machine = describe_machine(device)
    machine["versions"] |= {name: version(name) for name in packages}
    record = {"benchmark": benchmark, "command": _command(), "commit": _commit(), "machine": machine, **figures}
    if path is not None:
        write_atomically(path, to_json(record) + "\n")
    return record


def make_table(title: str, left: Iterable[str], right: Iterable[str]) -> "Table":
    """A table without rows, its columns of text on the left and of numbers on the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _command() -> str:
    program = Path(sys.argv[0]).resolve()
    if program.parent != Path(__file__).parent:
        return shlex.join(["treadle", *sys.argv[1:]])
    module = "benchmarks" if program.stem == "__main__" else f"benchmarks.{program.stem}"
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def _commit() -> str | None:
    """The clone's, marked where files differ from it; None where Git does not know."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
