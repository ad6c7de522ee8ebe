"""What `treadle eval`, `protocols` and `compare` do."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from treadle.commands.results import check_destination, write_result
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import read_config
from treadle.config.protocols import EvalConfig, find_protocol, protocols
from treadle.errors import ConfigError
from treadle.reporting.evaluation_console import EvaluationConsole
from treadle.reporting.evaluation_grids import protocol_grid, published_grid, suite_grid, task_grid
from treadle.reporting.tables import Grid

TASKS_SHOWN = 16
"""Tables of more tasks are on the page alone."""
PAGES = (".html", ".md")
"""What a page of a comparison is written as."""
_OVERRIDE = re.compile(r"[a-z_]+(\.[^.=\s]+)+=")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked of `treadle eval`."""

    words: Sequence[str]
    """Checkpoints, and `key=value`."""
    protocol: str | None = None
    output: Path = Path("evaluations")
    again: bool = False
    device: str = "auto"
    shuffle_instructions: bool = False
    blank_images: bool = False
    json: Path | None = None


def evaluate(request: Request, console: Console) -> None:
    """Evaluate checkpoints one after another, and show their tables.

    Raises:
        ConfigError: An unknown protocol or setting, or no checkpoint.
        CheckpointError: A checkpoint that is not there, or cannot be loaded.
        OutputError: A folder or file that cannot be written.
    """
    names, overrides = split_words(request.words)
    if not names:
        raise ConfigError("no checkpoint to evaluate; name a folder, or a checkpoint that ships with Treadle")
    protocol = None if request.protocol is None else find_protocol(request.protocol)
    config = read_config(EvalConfig, None, overrides) if protocol is None else protocol.config(overrides)
    folders = [resolve_checkpoint(name) for name in names]
    check_destination(request.json)
    check_destination(request.output / "evaluation")
    from treadle.evaluation.compare import comparison_data, paired_grid, read_items
    from treadle.evaluation.evaluate import Ablation, evaluate_checkpoint
    from treadle.evaluation.page import columns_of, sampling_of, settings_in, write_pages

    ablation = Ablation(
        "shuffled" if request.shuffle_instructions else "own", "blank" if request.blank_images else "own"
    )
    if protocol is not None:
        show(console, [protocol_grid(protocol, config.model_dump(mode="json", exclude={"collection"}))])
    reports: list[dict[str, Any]] = []
    with EvaluationConsole(len(folders), console) as watcher:
        for folder in folders:
            report = evaluate_checkpoint(
                folder, config.policy, config.simulator, config.evaluation, request.device,
                collection=config.collection, ablation=ablation, output=request.output, fresh=request.again,
                protocol=None if protocol is None else protocol.name, watcher=watcher,
            )  # fmt: skip
            reports.append(report)
            tasks = task_grid(report)
            show(console, [suite_grid(report), *([tasks] if len(tasks.rows) <= TASKS_SHOWN else [])])
            watcher.message(f"report: {write_pages(Path(report['folder']), report, protocol)}")
    if protocol is not None and protocol.columns:
        made = reports[0]["manifest"]
        measured = {report["manifest"]["checkpoint"]: columns_of(report, protocol) for report in reports}
        show(console, [published_grid(protocol, measured, sampling_of(made), settings_in(made))])
    if len(reports) == 1:
        write_result(request.json, reports[0])
        return
    items = read_items([Path(report["folder"]) for report in reports])
    show(console, [paired_grid(items)])
    write_result(request.json, {"evaluations": reports, "comparison": comparison_data(items)})


def reproduce(path: Path, request: Request, console: Console) -> bool:
    """Evaluate again what a manifest describes; returns whether each suite's success is in the interval it had.

    Raises ConfigError for a file that is no manifest, and what `evaluate` raises.
    """
    names, overrides = split_words(request.words)
    if request.protocol is not None or len(names) > 1:
        found = "--protocol" if request.protocol is not None else f"{len(names)} checkpoints"
        raise ConfigError(
            f"--reproduce: found {found} beside it; a manifest has its settings, and is of one checkpoint"
        )
    from treadle.evaluation.reproduce import differences, read_manifest, reproduction, reproduction_grids, settings_of

    before = read_manifest(path)
    config = settings_of(before, overrides)
    if not names and "checkpoint_path" not in before:
        raise ConfigError(f"{path}: it does not say where its checkpoint is; name the checkpoint beside --reproduce")
    folder = resolve_checkpoint(names[0] if names else before["checkpoint_path"])
    check_destination(request.json)
    check_destination(request.output / "evaluation")
    from treadle.evaluation.evaluate import Ablation, evaluate_checkpoint
    from treadle.evaluation.manifest import checkpoint_label
    from treadle.evaluation.page import write_pages

    def notes(made: Mapping[str, Any]) -> list[str]:
        return [f"differs from the manifest: {difference}" for difference in differences(before, made)]

    with EvaluationConsole(1, console, notes) as watcher:
        report = evaluate_checkpoint(
            folder, config.policy, config.simulator, config.evaluation, request.device, collection=config.collection,
            ablation=Ablation(**before.get("ablation", {})), output=request.output, fresh=True,
            name=f"{checkpoint_label(folder)}-reproduced", protocol=before.get("protocol"), watcher=watcher,
        )  # fmt: skip
    found = reproduction(path, before, report)
    grids = reproduction_grids(before, report, found)
    show(console, [suite_grid(report), *grids])
    watcher.message(f"report: {write_pages(Path(report['folder']), report, others=grids)}")
    write_result(request.json, report | {"reproduction": found})
    return found["inside"]


def compare(paths: Sequence[Path], page: Path, json: Path | None, console: Console) -> None:
    """Show runs and evaluations beside each other, and write their page. Raises ConfigError and OutputError."""
    from treadle.evaluation.compare import comparison_data, comparison_grids, read_items, write_comparison

    check_destination(page)
    check_destination(json)
    if page.suffix not in PAGES:
        raise ConfigError(f"--page: found {str(page)!r}; allowed is a file that ends in {' or '.join(PAGES)}")
    items = read_items(paths)
    show(console, comparison_grids(items))
    write_comparison(page, items)
    console.print(f"page: {page}", markup=False, highlight=False, soft_wrap=True)
    write_result(json, comparison_data(items))


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checkpoints and settings among the words of a command. A folder that is there may have `=` in its name."""
    settings = [word for word in words if "=" in word and (_OVERRIDE.match(word) or not Path(word).is_dir())]
    return [word for word in words if word not in settings], settings


def protocol_groups() -> dict[str, list[tuple[str, str]]]:
    """The protocols that are installed, by what they are of: the part of their names before the slash."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, protocol in protocols().items():
        groups.setdefault(name.rpartition("/")[0], []).append((name, protocol.summary))
    return groups


def show_protocol(name: str, console: Console) -> None:
    """Settings and published figures of a protocol. Raises ConfigError."""
    protocol = find_protocol(name)
    config = protocol.config()
    console.print(Text(protocol.summary))
    grids = [protocol_grid(protocol, config.model_dump(mode="json", exclude={"collection"}))]
    show(console, grids + ([published_grid(protocol, {}, "", {})] if protocol.columns else []))


def show(console: Console, grids: Sequence[Grid]) -> None:
    """Print the tables that have rows: as records on a terminal that is too narrow, on longer lines in a pipe."""
    width = console.width
    for grid in grids:
        if grid.rows and console.is_terminal and grid.least_width(width) > width:
            console.print(grid.to_records())
        elif grid.rows:
            console.width = max(width, grid.least_width(width))
            console.print(grid.to_rich(width))
    console.width = width
