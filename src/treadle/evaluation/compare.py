"""Several evaluations and runs on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from treadle.config.protocols import WHERE
from treadle.config.run_directory import CONFIG, PLACE, flatten
from treadle.errors import ConfigError, did_you_mean_folder
from treadle.evaluation.curves import comparison_curves, group_runs
from treadle.evaluation.episodes import EPISODES_FILE, Episodes, read_episodes
from treadle.evaluation.folder import RESULT_FILE
from treadle.evaluation.paired import PairedResult, compare_paired
from treadle.evaluation.statistics import Rule
from treadle.files import write_atomically
from treadle.reporting.evaluation_grids import differences_grid
from treadle.reporting.folder import RunFolder, read_report, read_run
from treadle.reporting.page import render_page
from treadle.reporting.tables import Grid, Row, interval, percent, points

_PROTOCOL = ("ablation.", "evaluation.sampling.", "evaluation.success", "evaluation.repeats", "horizons.")
"""Settings of how a policy is evaluated begin so."""
_UNTOLD = {"output", "name", "checkpoint_path", *WHERE}


@dataclass(slots=True)
class Item:
    """One evaluation, or a run."""

    name: str
    suites: dict[str, Any] = field(default_factory=dict[str, Any])
    """Results by suite; none for a run that was not evaluated."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """By dotted names."""
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])
    episodes: Episodes = field(default_factory=dict[str, Any])
    run: RunFolder | None = None

    @property
    def rule(self) -> Rule:
        """Which episodes count as successes."""
        return self.manifest.get("evaluation", {}).get("success", "once")


def read_items(paths: Sequence[Path]) -> list[Item]:
    """The evaluations of folders, result files and runs. A run that is alone gives two, before and after training.

    Raises ConfigError where something else is there, or nothing to compare.
    """
    items = [item for path in paths for item in _read(path, both=len(paths) == 1)]
    if len(items) < 2:
        raise ConfigError(
            "found one evaluation to compare; give the folders of several runs or evaluations, or a run that was "
            "evaluated before and after training"
        )
    # Equal names get numbers.
    for i, item in enumerate(items):
        same = [other for other in items[:i] if other.name.partition(" #")[0] == item.name]
        item.name += f" #{len(same) + 1}" if same else ""
    return items


def success_grid(items: Sequence[Item]) -> Grid:
    """Success of each item on each suite, and on its settings."""
    grid = Grid("Success", ["suite", *(item.name for item in items)])
    for suite in dict.fromkeys(suite for item in items for suite in item.suites):
        found = [item.suites.get(suite) for item in items]
        grid.rows.append(Row([suite, *("" if one is None else percent(one["success"]) for one in found)], "strong"))
        spans = ["" if one is None else f"{interval(one['ci95'])}, n {one['episodes']}" for one in found]
        grid.rows.append(Row(["95 % interval", *spans], "faint"))
    changed = [key for key in items[0].settings if key.startswith(_PROTOCOL) and _differs(items, key)]
    if changed:
        grid.note = f"Not one protocol: {', '.join(changed)} differ, so this compares more than policies."
    return grid


def paired_grid(items: Sequence[Item]) -> Grid:
    """Each item compared with the first, on the scenarios that both have played."""
    grid = Grid(
        f"Compared with {items[0].name}, on the same scenarios",
        ["suite", "", "difference", "95 % interval", "worse", "better", "p"],
        text=("",),
        optional=("worse", "better"),
    )
    grid.rows += [Row([suite, item.name, *_paired_cells(found)]) for suite, item, found in _pairs(items)]
    if grid.rows:
        grid.note = (
            "Differences are in points. Worse and better count scenarios. p is exact: McNemar's test, or a permutation "
            "within each scenario where scenarios repeat; below 0.05, chance alone would seldom do it. With many rows, "
            "some are below by chance."
        )
        grid.note = " ".join([grid.note, *_language_notes(items)])
    return grid


def configuration_grid(items: Sequence[Item]) -> Grid:
    """Settings, weights and versions that differ."""
    flat = [{key: value for key, value in item.settings.items() if key not in _UNTOLD} for item in items]
    return differences_grid("What differs", [item.name for item in items], flat)


def comparison_grids(items: Sequence[Item]) -> list[Grid]:
    """The tables of a comparison that have rows."""
    return [grid for make in (success_grid, paired_grid, configuration_grid) if (grid := make(items)).rows]


def comparison_data(items: Sequence[Item]) -> dict[str, Any]:
    """A comparison as plain data: results, and each item compared with the first, by suite."""
    return {
        "items": [{"name": item.name, "suites": item.suites, "settings": item.settings} for item in items],
        "paired": [
            {"suite": suite, "a": items[0].name, "b": item.name, **asdict(found)}
            for suite, item, found in _pairs(items)
        ],
    }


def write_comparison(path: Path, items: Sequence[Item]) -> None:
    """Write the page of a comparison: HTML with curves of runs, or Markdown for a name that ends in `.md`. Raises
    OutputError.
    """
    title = " and ".join(item.name for item in items) if len(items) == 2 else f"{len(items)} compared"
    grids = comparison_grids(items)
    if path.suffix == ".md":
        write_atomically(path, "\n".join([f"# {title}\n", *(grid.to_markdown() for grid in grids)]))
        return
    curves = comparison_curves(group_runs([item.run for item in items if item.run is not None]))
    sections = [("Curves", curves), *((grid.title, grid.to_html()) for grid in grids)]
    write_atomically(path, render_page(title, ", ".join(item.name for item in items), sections))


def _read(path: Path, *, both: bool) -> list[Item]:
    if path.is_dir() and (path / RESULT_FILE).is_file():
        return [_evaluation(path.name, _report(path / RESULT_FILE), path / EPISODES_FILE)]
    if path.is_dir() and (path / CONFIG).is_file():
        return _run(path, both=both)
    report = _report(path)
    # A file of --json names the folder that has the episodes; those of a run's evaluation lie beside it.
    kept = Path(report["folder"]) / EPISODES_FILE if "folder" in report else path.with_suffix(f".{EPISODES_FILE}")
    return [_evaluation(path.stem, report, kept)]


def _report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"{path}: neither a run nor an evaluation{did_you_mean_folder(path)}; give a folder that `treadle "
            "train` or `treadle eval` made, or the file of its --json; a checkpoint is measured by `treadle eval` first"
        )
    report = read_report(path)
    assert report is not None, "it is a file"
    return report


def _evaluation(name: str, report: Mapping[str, Any], episodes: Path) -> Item:
    manifest = report.get("manifest", {})
    told = {key: value for key, value in manifest.items() if key not in ("scenarios", "suites", "complete")}
    return Item(name, report["suites"], flatten(told), manifest, read_episodes(episodes))


def _run(path: Path, *, both: bool) -> list[Item]:
    run = read_run(path)
    settings = {key: value for key, value in flatten(run.config).items() if key.partition(".")[0] not in PLACE}
    found: list[Item] = []
    for which, report in (("base", run.base), ("final", run.final)):
        if report is not None and (both or which == "final" or run.final is None):
            name = f"{run.name} ({which})" if both else run.name
            episodes = read_episodes(path / "evaluation" / f"{which}.{EPISODES_FILE}")
            found.append(Item(name, report["suites"], settings, report.get("manifest", {}), episodes))
    if not found:
        found.append(Item(run.name, settings=settings))
    found[-1].run = run
    return found


def _pairs(items: Sequence[Item]) -> list[tuple[str, Item, PairedResult]]:
    first = items[0]
    return [
        (suite, item, found)
        for suite, of in first.episodes.items()
        for item in items[1:]
        if (found := compare_paired([*of.values()], [*item.episodes.get(suite, {}).values()], first.rule))
    ]


def _differs(items: Sequence[Item], key: str) -> bool:
    """Whether items have a setting otherwise than each other; a run lacks some that an evaluation has."""
    return len({str(item.settings[key]) for item in items if key in item.settings}) > 1


def _language_notes(items: Sequence[Item]) -> list[str]:
    """Who succeeds as well with another instruction."""
    key = "ablation.instructions"
    return [
        f"{item.name}, {suite}: instructions differ ({key}), and success does not, within its interval: the policy may "
        "ignore the language."
        for suite, item, found in _pairs(items)
        if _differs([items[0], item], key) and found.ci95[0] <= 0 <= found.ci95[1]
    ]


def _paired_cells(found: PairedResult) -> list[str]:
    low, high = found.ci95
    p = f"{found.p_value:.3f}" if found.p_value >= 0.001 else "< 0.001"
    return [points(found.difference), f"{points(low)} to {points(high)}", str(found.only_a), str(found.only_b), p]
