"""The pages of one evaluation: `report.html` and `report.md` in its folder."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from treadle.config.protocols import Protocol
from treadle.config.run_directory import flatten
from treadle.evaluation.folder import VIDEOS, read_videos
from treadle.evaluation.statistics import mean_interval
from treadle.files import to_json, write_atomically
from treadle.reporting.evaluation_grids import Columns, protocol_grid, published_grid, suite_grid, task_grid
from treadle.reporting.page import details, film, missing, pairs, render_page
from treadle.reporting.tables import Grid

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


def write_pages(
    folder: Path, report: Mapping[str, Any], protocol: Protocol | None = None, others: Sequence[Grid] = ()
) -> Path:
    """Write both pages; returns the HTML file's path. `others`: further tables, below the first. Raises OutputError."""
    made = report["manifest"]
    title = f"{made['checkpoint']} · {protocol.name}" if protocol else made["checkpoint"]
    success, tasks = suite_grid(report), task_grid(report)
    below = [*others, *protocol_grids(report, protocol)]
    if tasks.rows:
        below.append(tasks)
    sections = [("Success", success.to_html()), *((grid.title, grid.to_html()) for grid in below)]
    sections.insert(1, ("Failures and successes", _films(folder)))
    sections.append(("What the figures depend on", _manifest(made)))
    path = folder / HTML_FILE
    write_atomically(path, render_page(title, status(report), sections))
    text = "\n".join([f"# {title}\n", status(report) + "\n", *(grid.to_markdown() for grid in (success, *below))])
    write_atomically(folder / MARKDOWN_FILE, text)
    return path


def protocol_grids(report: Mapping[str, Any], protocol: Protocol | None) -> list[Grid]:
    """Of a protocol: the published figures, with the measured ones above them, and the settings."""
    if protocol is None:
        return []
    made = report["manifest"]
    grids = [protocol_grid(protocol, settings_in(made))]
    if protocol.columns:
        measured = {made["checkpoint"]: columns_of(report, protocol)}
        grids.insert(0, published_grid(protocol, measured, sampling_of(made), settings_in(made)))
    return grids


def settings_in(made: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of settings that a manifest has."""
    return {section: made[section] for section in ("policy", "simulator", "evaluation")}


def columns_of(report: Mapping[str, Any], protocol: Protocol) -> Columns:
    """The columns of a protocol's table whose suites were all played, each with the mean of its suites."""
    suites = report["suites"]
    return {
        column: mean_interval([(suites[suite]["success"], tuple(suites[suite]["ci95"])) for suite in names])
        for column, names in protocol.columns.items()
        if all(suite in suites for suite in names)
    }


def sampling_of(manifest: Mapping[str, Any]) -> str:
    """How actions were chosen, in words."""
    sampling = manifest["evaluation"]["sampling"]
    if sampling["temperature"] == 0:
        return "greedy"
    return f"sampled at {sampling['temperature']:g}"


def status(report: Mapping[str, Any]) -> str:
    """Whether the evaluation is whole, in a sentence."""
    played = sum(suite["episodes"] for suite in report["suites"].values())
    if report.get("complete", True):
        return f"{played:,} episodes, complete."
    return f"Unfinished: {played:,} of {report['wanted']:,} episodes. The same command goes on."


def _films(folder: Path) -> str:
    figures: list[str] = []
    for entry in read_videos(folder):
        outcome, kind = ("success", "good") if entry["success"] else ("failure", "bad")
        title = f"{escape(str(entry['instruction']))}<small>{escape(str(entry['scenario']))}</small>"
        video = film(folder / VIDEOS, str(entry["file"])) or missing("The film is missing.")
        caption = f'<span class="outcome"><i class="{kind}">{outcome}</i> {entry["length"]} steps</span>'
        figures.append(f'<figure class="pair"><figcaption>{title}</figcaption>{video}{caption}</figure>')
    return f'<div class="pairs">{"".join(figures)}</div>' if figures else ""


def _manifest(manifest: Mapping[str, Any]) -> str:
    flat = {key: to_json(value, None) for key, value in flatten(manifest).items()}
    return details("Manifest", pairs(flat))
