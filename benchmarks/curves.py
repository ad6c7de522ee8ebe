"""Learning curves of algorithms on one simulator: success over samples and over wall time, several seeds of each."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.output import make_table, write_record
from treadle.config.loading import load_recipe
from treadle.config.run_directory import hold_run_directory
from treadle.errors import ConfigError, OutputError
from treadle.files import write_atomically
from treadle.reading import read_json
from treadle.reporting.metrics import read_metrics
from treadle.reporting.plots import Axes, Series, moving_mean, standalone_chart
from treadle.reporting.summary import SUMMARY_FILE
from treadle.runtime.loop import train

_APART = ("placement.simulate=0", "placement.generate=0", "placement.train=1")
_FILTER = ("algorithm.filter.low=0.1", "algorithm.filter.high=0.9")
_FLOW_GRPO = (
    "iterations=130",
    "algorithm.kind=grpo",
    "algorithm.estimator=rloo_alike",
    "algorithm.gamma=1",
    "algorithm.filter.low=0",
    "algorithm.filter.high=1",
    "optimizer.learning_rate=6e-4",
    "optimizer.final_share=0.2",
    "optimizer.warmup_iterations=5",
    "optimizer.average=0.9",
)
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ppo": ("quickstart", ()),
    "apart": ("quickstart", _APART),
    "apart-async": ("quickstart", (*_APART, "overlap=async")),
    "ppo-half": ("quickstart", ("algorithm.chunk_share=0.5",)),
    "ppo-chunk-values": ("quickstart", ("algorithm.value_level=chunk",)),
    "ppo-whole-episodes": ("quickstart", ("algorithm.partial_reset=false",)),
    "openvla": ("quickstart-openvla", ()),
    "openvla-grpo": ("quickstart-openvla-grpo", ()),
    "grpo": ("quickstart-grpo", ()),
    "grpo-by-episodes": ("quickstart-grpo", ("algorithm.trajectory_weights=true",)),
    "grpo-scores": ("quickstart-grpo", ("algorithm.estimator=grpo",)),
    "grpo-20-percent": ("quickstart-grpo", ("algorithm.chunk_share=0.2",)),
    "grpo-filter": ("quickstart-grpo", _FILTER),
    "grpo-refill": ("quickstart-grpo", (*_FILTER, "algorithm.filter.refills=2")),
    "flow": ("tabletop-flow", ()),
    "flow-sde": ("tabletop-flow", ("policy.options.noise=sde", "policy.options.level=0.6")),
    "flow-grpo": ("tabletop-flow", _FLOW_GRPO),
    "maniskill-pushcube": ("maniskill-pushcube", ()),
    "libero-object": ("libero-object", ()),
}
"""Names of curves, each a recipe and what differs from it."""
EXPERIMENTS: dict[str, dict[str, int]] = {
    "four-way": {"ppo": 3, "grpo": 3, "openvla": 1, "openvla-grpo": 1},
    "flow": {"ppo": 3, "flow": 3, "flow-sde": 1, "flow-grpo": 1},
    "ablations": {
        "ppo": 2,
        "ppo-chunk-values": 2,
        "ppo-whole-episodes": 2,
        "ppo-half": 2,
        "grpo": 2,
        "grpo-by-episodes": 2,
        "grpo-filter": 2,
        "grpo-20-percent": 2,
    },
}
"""Variants that are compared on one page, with the number of seeds of each: both algorithms with both policies; a flow
policy beside the token policy; what published work found to matter."""
POINTS = 200
"""Points of a plotted curve."""


def find_experiment(name: str) -> dict[str, int]:
    """The variants of an experiment, and the number of seeds of each. Raises ConfigError."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"--experiment: unknown {name!r}; known: {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def run(folder: Path, variants: Mapping[str, int], runs: Path, overrides: Sequence[str]) -> None:
    """Train each variant with the first of seeds, as many as it says, into `runs`; print what came of it, and write
    `curves.json`, `success.md` and two plots into `folder`.

    Runs that are finished are read and not repeated; those that were cut short go on.

    Raises:
        ConfigError: a variant that is unknown.
        OutputError: a folder in `runs` that holds a run of another configuration.
    """
    for name in variants:
        if name not in VARIANTS:
            raise ConfigError(f"--variant: unknown {name!r}; known: {', '.join(VARIANTS)}")
    rows: dict[str, dict[str, Any]] = {}
    for name, seeds in variants.items():
        recipe, changes = VARIANTS[name]
        for seed in range(seeds):
            label = f"{name}-seed{seed}"
            config = load_recipe(recipe, [*changes, *overrides, f"name={label}", f"output={runs}", f"seed={seed}"])
            with hold_run_directory(config, print) as directory:
                done = (directory / SUMMARY_FILE).exists()
            if not done:
                train(config)
            rows[label] = {
                "variant": name,
                "recipe": recipe,
                "changes": [*changes, *overrides],
                "seed": seed,
                "curve": curve(read_metrics(directory)),
                "summary": read_json(directory / SUMMARY_FILE, OutputError),
            }
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / "curves.json", "curves", {"runs": rows})
    write_atomically(folder / "success.md", success_table(rows))
    plots = {"samples": ("control_steps", "control steps"), "time": ("minutes", "minutes of training")}
    for name, (key, label) in plots.items():
        write_atomically(folder / f"success-over-{name}.svg", plot(rows, key, label))
    Console().print(_table(rows))


def curve(metrics: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Success in rollouts, over control steps and over minutes of training up to the end of each iteration."""
    played = [row for row in metrics if "rollout/success" in row]
    steps = np.cumsum([row["rollout/control_steps"] for row in metrics])
    at = [index for index, row in enumerate(metrics) if "rollout/success" in row]
    return {
        "iteration": [row["iteration"] for row in played],
        "control_steps": [float(steps[index]) for index in at],
        "minutes": [row["seconds"] / 60 for row in played],
        "success": [row["rollout/success"] for row in played],
        "update_seconds": [row.get("time/update", 0.0) for row in played],
    }


def success_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: of each variant, success in % before and after training, seed by seed, in each suite."""
    grouped = _by_variant(rows)
    suites = next(iter(rows.values()))["summary"]["final"]
    lines = [["", *(suite.replace("_", " ") for suite in suites), "control steps, minutes"]]
    lines += [["---"] * len(lines[0])]
    for variant, found in grouped.items():
        base = found[0]["summary"]["base"]
        cells = [
            f"{base[suite]['success']:.1%} -> {_joined(r['summary']['final'][suite]['success'] for r in found)}"
            for suite in suites
        ]
        ends = ", ".join(f"{r['curve']['control_steps'][-1]:,.0f}" for r in found)
        minutes = ", ".join(f"{r['curve']['minutes'][-1]:.1f}" for r in found)
        lines.append([variant, *cells, f"{ends}; {minutes}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("before", "after", "control steps", "minutes", "minutes of updates")
    table = make_table("runs, success in distribution", ["run"], columns)
    for label, row in rows.items():
        curve, summary = row["curve"], row["summary"]
        table.add_row(
            label,
            *(f"{summary[when]['in_distribution']['success']:.1%}" for when in ("base", "final")),
            f"{curve['control_steps'][-1]:,.0f}",
            f"{curve['minutes'][-1]:.1f}",
            f"{sum(curve['update_seconds']) / 60:.1f}",
        )
    return table


def plot(rows: Mapping[str, Mapping[str, Any]], key: str, label: str) -> str:
    """An SVG that stands alone: for each variant the mean over its seeds, over as far as all of them go."""
    grouped = {variant: [row["curve"] for row in found] for variant, found in _by_variant(rows).items()}
    ends = {variant: min(c[key][-1] for c in found) for variant, found in grouped.items()}
    x = np.linspace(0, max(ends.values()), POINTS)
    series: list[Series] = []
    for variant, found in grouped.items():
        curves = [np.interp(x, c[key], moving_mean(c["success"], 5), left=np.nan) for c in found]
        mean = np.where(x <= ends[variant], np.mean(curves, axis=0), np.nan)
        series.append(Series(f"{variant}, {len(found)} seed{'s' * (len(found) > 1)}", mean.tolist()))
    axes = Axes(label, "success in rollouts", low=0.0, high=1.0, percent=True)
    return standalone_chart(x.tolist(), series, axes)


def _joined(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


def _by_variant(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows.values():
        grouped.setdefault(row["variant"], []).append(row)
    return grouped
