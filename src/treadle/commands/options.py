"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from treadle.commands.completion import (
    complete_checkpoint,
    complete_device,
    complete_recipe,
    complete_settings,
    complete_suite,
)
from treadle.config.schema import TrainConfig

RECIPE_HELP = "A name that `treadle recipes` lists, or a .toml file."
RecipeName = Annotated[str, typer.Argument(help=RECIPE_HELP, autocompletion=complete_recipe)]
OVERRIDES_HELP = "Settings that differ from the recipe's."
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help=OVERRIDES_HELP, autocompletion=complete_settings(TrainConfig)),
]
CheckpointOrRun = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT|RUN",
        help="A checkpoint folder, the name of one that ships with Treadle, or the folder of a run.",
        autocompletion=complete_checkpoint,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", autocompletion=complete_device)]
Suites = Annotated[
    list[str] | None,
    typer.Option("--suite", help="A suite to evaluate; may be given again.", autocompletion=complete_suite),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to this file.")]
