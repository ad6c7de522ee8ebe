"""The tables of an evaluation: suites, tasks, published figures, settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from treadle.config.describe import toml_text
from treadle.config.protocols import Protocol
from treadle.config.run_directory import flatten
from treadle.reporting.tables import Grid, Row, interval, percent

Result = Mapping[str, Any]
Columns = Mapping[str, tuple[float, tuple[float, float]]]
"""By column of a published table: success and its 95 % interval."""
Settings = Mapping[str, Any]
"""By section, as plain data."""


def suite_grid(report: Mapping[str, Any]) -> Grid:
    """Success on each suite and, below it, each of its settings."""
    rule = _rule(report)
    other = "at end" if rule == "once" else "once"
    grid = Grid(
        "",
        ["suite", "success", "95 % interval", other, "return", "length", "episodes"],
        optional=(other, "return", "length"),
        note="Success: the goal held at some time." if rule == "once" else "Success: the goal held at the end.",
    )
    for suite, result in report["suites"].items():
        grid.rows.append(Row([suite, *_cells(result, rule)], "strong"))
        for setting, part in result.get("settings", {}).items():
            grid.rows.append(Row([setting, *_cells(part, rule)], "faint"))
    return grid


def task_grid(report: Mapping[str, Any]) -> Grid:
    """Success on each task of each suite that has several, the worst first."""
    grid = Grid("By task", ["task", "success", "95 % interval", "episodes"])
    for suite, result in report["suites"].items():
        tasks = sorted(result.get("tasks", {}).items(), key=lambda item: (item[1]["success"], item[0]))
        if tasks:
            grid.rows.append(Row([suite, "", "", ""], "strong"))
        for task, part in tasks:
            cells = [task.replace("_", " "), percent(part["success"]), interval(part["ci95"]), str(part["episodes"])]
            grid.rows.append(Row(cells, "faint"))
    return grid


def published_grid(protocol: Protocol, results: Mapping[str, Columns], sampling: str, settings: Settings) -> Grid:
    """What was measured, above what was published under the protocol. `results`: by checkpoint, all with the same
    settings; `sampling`: how they chose actions.
    """
    columns = list(protocol.columns)
    grid = Grid("Beside the published figures", ["model", "actions", *columns], text=("actions",))
    for name, found in results.items():
        cells = [percent(found[column][0]) if column in found else "" for column in columns]
        grid.rows.append(Row([name, sampling, *cells], "strong"))
        spans = [interval(found[column][1]) if column in found else "" for column in columns]
        grid.rows.append(Row(["95 % interval", "", *spans], "faint"))
    sources = list(dict.fromkeys(row.source for row in protocol.published))
    for row in protocol.published:
        cells = [percent(row.success[column] / 100) if column in row.success else "" for column in columns]
        grid.rows.append(Row([f"{row.model} [{sources.index(row.source) + 1}]", row.sampling, *cells]))
    listed = [f"[{i}] {source}." for i, source in enumerate(sources, start=1)]
    notes = [f"{row.model}: {row.note}" for row in protocol.published if row.note]
    changed = ", ".join(key for key, *_ in protocol.departures(settings)) if results else ""
    warning = [f"Not under the protocol: other values of {changed}."] if changed else []
    grid.note = " ".join([*warning, *listed, *notes, *protocol.caveats])
    return grid


def protocol_grid(protocol: Protocol, settings: Settings) -> Grid:
    """Every setting that a protocol states, and those that are otherwise."""
    changed = {key: (wanted, used) for key, wanted, used in protocol.departures(settings)}
    stated = flatten(protocol.settings)
    grid = Grid(f"Protocol {protocol.name}", ["setting", "value", "in place of"], text=("value", "in place of"))
    for key in dict.fromkeys([*stated, *changed]):
        wanted, used = changed.get(key, (None, stated.get(key)))
        old = "" if key not in changed else "nothing" if wanted is None else toml_text(wanted)
        cells = [key, "absent" if used is None else toml_text(used), old]
        grid.rows.append(Row(cells, "strong" if key in changed else "plain"))
    grid.note = " ".join(protocol.differs and ("Otherwise than published:", *protocol.differs))
    return grid


def differences_grid(title: str, names: Sequence[str], items: Sequence[Mapping[str, Any]]) -> Grid:
    """Settings that items have otherwise than each other."""
    grid = Grid(title, ["setting", *names], text=tuple(names))
    for key in dict.fromkeys(key for item in items for key in item):
        values = [toml_text(item[key]) if key in item else "absent" for item in items]
        if len(set(values)) > 1:
            grid.rows.append(Row([key, *values]))
    return grid


def _cells(result: Result, rule: str) -> list[str]:
    # Reports of earlier versions lack what came later.
    other = result.get("success_at_end" if rule == "once" else "success_once")
    return [
        percent(result["success"]),
        interval(result["ci95"]),
        "" if other is None else percent(other),
        *("" if result.get(key) is None else form.format(result[key]) for key, form in _MEANS),
        str(result["episodes"]),
    ]


_MEANS = (("mean_return", "{:z.2f}"), ("mean_length", "{:.1f}"))


def _rule(report: Mapping[str, Any]) -> str:
    return report.get("manifest", {}).get("evaluation", {}).get("success", "once")
