"""What `treadle data` does."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from treadle.commands.completion import complete_checkpoint, complete_folder, complete_settings
from treadle.commands.options import Device, JsonFile
from treadle.commands.record import find_policy_folder
from treadle.commands.results import check_destination, write_result
from treadle.config.dataset import CheckConfig
from treadle.config.loading import read_config
from treadle.errors import ConfigError

if TYPE_CHECKING:
    from treadle.supervised.dataset_check import Checked
    from treadle.supervised.findings import Finding

data_app = typer.Typer(help="Look at data sets.", no_args_is_help=True)
_SHOWN = 5
"""Findings of a kind that are shown."""


@data_app.callback()
def options() -> None:
    """Look at data sets."""


@data_app.command("check")
def check(
    dataset: Annotated[Path, typer.Argument(help="The folder of a LeRobot data set.", autocompletion=complete_folder)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="cameras, and settings of the sections columns, policy (loading), simulator.",
            autocompletion=complete_settings(CheckConfig),
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Compare with a checkpoint: its statistics, and its actions in open loop.",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    replay: Annotated[
        int, typer.Option(min=0, help="Play the recorded actions of so many episodes again in their simulator.")
    ] = 0,
    device: Device = "auto",
    json: JsonFile = None,
) -> None:
    """Check a data set before it is learned from: files, numbers, frames, lengths, idle stretches, ranges. Exits with 2
    where nobody can learn from it.
    """
    config = read_config(CheckConfig, None, overrides or [])
    folder = None if policy is None else find_policy_folder(policy)[0]
    check_destination(json)
    from treadle.supervised.dataset_check import check_dataset

    console = Console()
    with console.status("") as status:
        checked = check_dataset(dataset, config, policy=folder, replays=replay, device=device, stage=status.update)
    show_checked(console, dataset, checked)
    write_result(json, {"dataset": str(dataset), **checked.report()})
    refusals = [finding for finding in checked.findings if finding.refused]
    if refusals:
        said = refusals[0].said
        more = f" (and {len(refusals) - 1} more that refuse it)" if len(refusals) > 1 else ""
        raise ConfigError(f"{'' if str(dataset) in said else f'{dataset}: '}{said}{more}")


def show_checked(console: Console, dataset: Path, checked: "Checked") -> None:
    """Print what was found: refusals first."""
    if checked.findings:
        table = Table(box=box.SIMPLE_HEAD)
        for name in ("finding", "where", "what"):
            table.add_column(name, overflow="fold")
        counts = Counter(finding.rule for finding in checked.findings)
        shown: Counter[str] = Counter()
        for finding in sorted(checked.findings, key=lambda finding: not finding.refused):
            shown[finding.rule] += 1
            if shown[finding.rule] <= _SHOWN:
                name = Text(finding.rule, style="bold red" if finding.refused else "bold")
                table.add_row(name, Text(place(finding)), Text(finding.said))
            elif shown[finding.rule] == counts[finding.rule]:
                table.add_row(Text(finding.rule), "", f"{counts[finding.rule] - _SHOWN} more")
        console.print(table)
    said = f"{dataset}: {checked.episodes} episodes, {checked.frames} frames, {len(checked.findings)} findings"
    lines = [said + (", refused" if checked.refused else "")]
    if checked.open_loop is not None:
        lines.append(
            f"open-loop error of the policy: {checked.open_loop['mean']:.3g} standard deviations, of "
            f"{checked.open_loop['decisions']} decisions"
        )
    if checked.replayed is not None:
        lines.append(f"played again: {checked.replayed['successes']} of {checked.replayed['episodes']} succeed")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def place(finding: "Finding") -> str:
    """Where a finding is, in words."""
    parts = [finding.file] if finding.file else []
    parts += [f"episode {finding.episode}"] if finding.episode is not None else []
    parts += [f"frame {finding.frame}"] if finding.frame is not None else []
    return ", ".join(parts)
