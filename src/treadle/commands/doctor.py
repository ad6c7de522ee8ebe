"""What `treadle doctor` does."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from treadle.commands.options import JsonFile
from treadle.commands.results import check_destination, write_result

if TYPE_CHECKING:
    from treadle.doctor import Check


def doctor(json: JsonFile = None) -> None:
    """Check this machine: what works, what is missing, and how to mend it. Exits with 1 where the core cannot work."""
    check_destination(json)
    from treadle.doctor import core_works, examine

    with Console(stderr=True).status("looking at this machine; each simulator that is installed draws a frame"):
        checks = examine()
    show_checks(checks, core_works(checks), json)


def show_checks(checks: "list[Check]", works: bool, json: Path | None) -> None:
    """Show what the doctor found, write it where a file was asked for, and exit with 1 unless all works."""
    from treadle.doctor import check_table, verdict

    console = Console()
    console.print(check_table(checks))
    console.print(verdict(checks))
    write_result(json, {"works": works, "checks": [asdict(check) for check in checks]})
    if not works:
        raise typer.Exit(1)
