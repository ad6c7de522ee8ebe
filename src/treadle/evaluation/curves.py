"""Curves of several runs, with bands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from treadle.config.run_directory import PLACE, flatten
from treadle.evaluation.statistics import wilson_interval
from treadle.files import to_json
from treadle.reporting.folder import RunFolder
from treadle.reporting.plots import COLORS, Axes, Series, chart

_CURVES = (
    ("Success in rollouts", "rollout/success", Axes("iteration", "of episodes", low=0.0, high=1.0, percent=True)),
    ("Return", "rollout/return", Axes("iteration", "sum of rewards")),
    ("Episode length", "rollout/length", Axes("iteration", "control steps", low=0)),
    ("Throughput", "speed/control_steps_per_second", Axes("iteration", "control steps/s", low=0)),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seeds alone."""

    name: str
    runs: tuple[RunFolder, ...]


def group_runs(runs: Sequence[RunFolder]) -> list[Group]:
    """Runs with the same settings but for name, seed and place, in order of first appearance."""
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        told = {
            key: value
            for key, value in flatten(run.config).items()
            if key not in ("name", "seed") and key.partition(".")[0] not in PLACE
        }
        groups.setdefault(to_json(dict(sorted(told.items()))), []).append(run)
    return [Group(", ".join(run.name for run in of), tuple(of)) for of in groups.values()]


def comparison_curves(groups: Sequence[Group]) -> str:
    """Charts with a line for each group: the mean of its runs, in a band from the lowest to the highest of them. A run
    that is alone has, where success is shown, a band of the 95 % interval of each iteration's episodes.
    """
    groups = [group for group in groups if any(run.metrics for run in group.runs)]
    if not groups:
        return ""
    length = max(int(run.metrics[-1]["iteration"]) for group in groups for run in group.runs if run.metrics)
    iterations = [float(i) for i in range(1, length + 1)]
    charts: list[str] = []
    for title, key, axes in _CURVES:
        lines = [_line(group, key, length) for group in groups]
        drawn = chart(iterations, lines, axes)
        charts.append(f"<figure><figcaption>{title} <small>{axes.y_label}</small></figcaption>{drawn}</figure>")
    legend = "".join(
        f'<li><b class="key s{i % COLORS}"></b>{escape(group.name)}</li>' for i, group in enumerate(groups)
    )
    note = (
        '<p class="note">A line is the mean of runs that differ in their seeds alone; its band goes from their lowest '
        "to their highest value. For a single run, the band of success is the 95 % interval of each iteration's "
        "episodes.</p>"
    )
    return f'<ul class="legend">{legend}</ul><div class="charts">{"".join(charts)}</div>{note}'


def _line(group: Group, key: str, length: int) -> Series:
    runs = [_by_iteration(run, key, length) for run in group.runs]
    mean, low, high = [list[float]() for _ in range(3)]
    for values in zip(*runs, strict=True):
        # The mean of all runs or none: where one has ended, the mean of the others would jump.
        whole = all(math.isfinite(value) for value in values)
        mean.append(sum(values) / len(values) if whole else math.nan)
        low.append(min(values) if whole else math.nan)
        high.append(max(values) if whole else math.nan)
    if len(group.runs) == 1:
        if key != "rollout/success":
            return Series(group.name, mean)
        counts = _by_iteration(group.runs[0], "rollout/episodes", length)
        bounds = [_interval(share, count) for share, count in zip(mean, counts, strict=True)]
        low, high = [bound[0] for bound in bounds], [bound[1] for bound in bounds]
    return Series(group.name, mean, low, high)


def _by_iteration(run: RunFolder, key: str, length: int) -> list[float]:
    values = [math.nan] * length
    for row in run.metrics:
        values[int(row["iteration"]) - 1] = row.get(key, math.nan)
    return values


def _interval(share: float, episodes: float) -> tuple[float, float]:
    if not (math.isfinite(share) and episodes > 0):
        return math.nan, math.nan
    return wilson_interval(round(share * episodes), round(episodes))
