"""What `treadle record` does."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from treadle.commands.completion import complete_checkpoint, complete_settings, complete_suite
from treadle.commands.options import Device, JsonFile
from treadle.commands.results import check_destination, write_result
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.dataset import RecordConfig
from treadle.config.loading import read_settings
from treadle.config.named_files import parse_file
from treadle.errors import ConfigError


def record(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|RUN",
            help="A checkpoint folder, the name of one that ships with Treadle, or the folder of a run, whose settings "
            "of the simulator are then taken.",
            autocompletion=complete_checkpoint,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the sections policy (loading), simulator, collection, sampling.",
            autocompletion=complete_settings(RecordConfig),
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The folder of the data set.")] = Path("rollouts"),
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play, each another scenario.")] = 100,
    success_only: Annotated[bool, typer.Option("--success-only", help="Write successes alone.")] = False,
    suite: Annotated[str, typer.Option(help="The suite of the scenarios.", autocompletion=complete_suite)] = "train",
    split: Annotated[
        Literal["train", "evaluation"], typer.Option(help="Scenarios that training may see, or those of evaluations.")
    ] = "train",
    first: Annotated[int, typer.Option(min=0, help="The first scenario, to go on after an earlier data set.")] = 0,
    rerun: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write each episode as a file for Rerun's viewer into this folder (extra rerun).",
        ),
    ] = None,
    device: Device = "auto",
    json: JsonFile = None,
) -> None:
    """Let a policy play, and write its episodes as a LeRobot data set of version 3.0, for `treadle sft` and others."""
    folder, settings = find_policy_folder(checkpoint)
    config = read_settings(RecordConfig, settings, overrides or [])
    check_destination(json)
    from treadle.simulators.build import simulator_factory

    simulator_factory(config.simulator)
    from treadle.supervised.recording import Choice, record_rollouts

    choice = Choice(suite, split, first, episodes, success_only)
    # Where there is no terminal, an empty line would be all that is left of it.
    with Progress(transient=True, disable=not Console().is_terminal) as shown:
        task = shown.add_task("episodes", total=episodes)
        found = record_rollouts(
            folder,
            config,
            choice,
            output,
            device,
            lambda done, total: shown.update(task, completed=done, total=total),
            rerun,
        )
    typer.echo(
        f"{output}: {found.episodes} episodes, {found.frames} frames; {found.successes} of {found.played} succeeded"
    )
    if rerun is not None:
        typer.echo(f"rerun {rerun}/*.rrd")
    write_result(json, {"output": str(output), **found.report()})


def find_policy_folder(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a policy, and the settings that the run it lies in has of its simulator: of a checkpoint, or of a
    run. Raises CheckpointError, and ConfigError for a run without a policy.
    """
    folder = resolve_checkpoint(name)
    config = folder / "config.json"
    if not (folder / "metrics.jsonl").is_file() or not config.is_file():
        return folder, {}
    if not (folder / "policy").is_dir():
        raise ConfigError(f"{folder}: the run has no policy yet; finish it, or name one of its checkpoints")
    simulator = parse_file(config).get("simulator")
    return folder / "policy", {} if simulator is None else {"simulator": simulator}
