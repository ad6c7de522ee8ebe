"""The report's table of success on each suite and setting, before and after."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from treadle.reporting.tables import interval, percent

_TITLES = {"train": "In distribution", "vision": "Vision", "semantic": "Semantic", "execution": "Execution"}
Result = Mapping[str, Any]


def evaluation_table(base: Mapping[str, Any] | None, final: Mapping[str, Any] | None) -> str:
    """Rows for each suite and, below it, each of its settings: base, final, difference, with 95 % intervals."""
    suites = [evaluation["suites"] if evaluation else {} for evaluation in (base, final)]
    # The order of the published tables first, then whatever else was evaluated.
    names = [name for name in dict.fromkeys([*_TITLES, *suites[0], *suites[1]]) if any(name in s for s in suites)]
    if not names:
        return '<p class="missing">This run has not been evaluated yet.</p>'
    rows: list[str] = []
    for name in names:
        before, after = (suite.get(name) for suite in suites)
        rows.append(_row(_TITLES.get(name, name), before, after, "suite"))
        settings = [result.get("settings", {}) if result else {} for result in (before, after)]
        for setting in dict.fromkeys([*settings[0], *settings[1]]):
            if setting == name:
                continue
            label = setting.removeprefix(f"{name}/").replace("_", " ")
            rows.append(_row(label, settings[0].get(setting), settings[1].get(setting), "setting"))
    head = (
        '<tr><th>suite and setting</th><th class="count">episodes</th><th>base</th><th>final</th><th>difference</th>'
        '<th class="range"><span>0 %</span><span>success</span><span>100 %</span></th></tr>'
    )
    return f'<div class="scroll"><table class="evaluation">{head}{"".join(rows)}</table></div>'


def difference_interval(base: Result, final: Result) -> tuple[float, float]:
    """95 % interval of final minus base success, from the two intervals (Newcombe 1998, method 10).

    It takes the two samples for independent. They share their scenarios, which can only make it wider than needed
    where success before and after go together.
    """
    p, (p_low, p_high) = base["success"], base["ci95"]
    q, (q_low, q_high) = final["success"], final["ci95"]
    return q - p - math.hypot(q - q_low, p_high - p), q - p + math.hypot(q_high - q, p - p_low)


def _row(label: str, base: Result | None, final: Result | None, kind: str) -> str:
    episodes = dict.fromkeys(result["episodes"] for result in (base, final) if result)
    count = " / ".join(f"{number:,}" for number in episodes)
    change = "<td></td>"
    if base and final:
        low, high = difference_interval(base, final)
        difference = final["success"] - base["success"]
        sign = "up" if low > 0 else "down" if high < 0 else "even"
        change = f'<td class="{sign}">{difference * 100:+.1f}<small>{low * 100:+.1f} to {high * 100:+.1f}</small></td>'
    return (
        f'<tr class="{kind}"><th>{escape(label)}</th><td class="count">{count}</td>{_cell(base)}{_cell(final)}{change}'
        f'<td class="range">{_dots(base, final)}</td></tr>'
    )


def _cell(result: Result | None) -> str:
    if result is None:
        return '<td class="missing">not yet</td>'
    return f"<td>{percent(result['success'])}<small>{interval(result['ci95'])}</small></td>"


def _dots(base: Result | None, final: Result | None) -> str:
    parts = ['<svg viewBox="-4 0 208 22" aria-hidden="true"><path class="track" d="M0 11H200"/>']
    for result, kind, y in ((base, "before", 7), (final, "after", 15)):
        if result:
            low, high = (200 * share for share in result["ci95"])
            parts.append(f'<path class="{kind}" d="M{low:.1f} {y}H{high:.1f}"/>')
            parts.append(f'<circle class="{kind}" cx="{200 * result["success"]:.1f}" cy="{y}" r="4"/>')
    return "".join([*parts, "</svg>"])
