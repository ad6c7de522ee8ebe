"""Arguments and options that several commands take, and their completion."""

from pathlib import Path
from typing import Annotated

import typer

from treadle.config.recipes import recipes


def complete_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Names of recipes, with their descriptions, for shell completion."""
    return [(name, doc) for name, doc in recipes().items() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[tuple[str, str]]:
    """Keys of a run, with their documentation, for shell completion."""
    from treadle.config.describe import describe
    from treadle.config.schema import TrainConfig

    return [(f"{key.name}=", key.doc) for key in describe(TrainConfig) if key.name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that differ from the recipe's.", autocompletion=complete_key
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file.")]
