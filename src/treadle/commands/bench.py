"""`treadle bench`: the benchmarks of the clone that Treadle runs from; they are no part of the installed package."""

import sys
from pathlib import Path

import typer

from treadle.errors import ConfigError

CLONE = Path(__file__).parents[3]


def bench(context: typer.Context) -> None:
    """Measure speed, signal and learning; from a clone."""
    if not (CLONE / "src" / "treadle").is_dir() or not (CLONE / "benchmarks" / "__main__.py").is_file():
        raise ConfigError(
            "treadle bench: benchmarks come with the source, not with the installed package; clone Treadle's "
            "repository, run `make setup` there, and take its .venv/bin/treadle"
        )
    # At the end, so that nothing else of the clone is found first; workers look there too.
    sys.path.append(str(CLONE))
    from benchmarks.__main__ import app

    code: int | None = typer.main.get_command(app).main(context.args, "treadle bench", standalone_mode=False)
    raise typer.Exit(code or 0)
