"""Learning curves: from the metrics of runs to numbers and plots that stand alone."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import curves
from treadle.config.loading import load_recipe
from treadle.config.run_directory import claim_run_directory
from treadle.errors import ConfigError, OutputError

METRICS = [
    {"rollout/success": 0.2, "rollout/control_steps": 100, "iteration": 1, "seconds": 60, "time/update": 5},
    {"rollout/control_steps": 50, "iteration": 2, "seconds": 90},
    {"rollout/success": 0.6, "rollout/control_steps": 100, "iteration": 3, "seconds": 120, "time/update": 7},
]


def test_a_curve_counts_samples_and_time_of_iterations_without_an_episode_too():
    found = curves.curve(METRICS)
    assert found == {
        "iteration": [1, 3],
        "control_steps": [100, 250],
        "minutes": [1, 2],
        "success": [0.2, 0.6],
        "update_seconds": [5, 7],
    }


def test_a_plot_is_an_svg_with_a_line_and_a_name_for_each_variant():
    rows = {
        f"{name}-{seed}": {"variant": name, "curve": curves.curve(METRICS)} for name in ("ppo", "grpo") for seed in "01"
    }
    root = ElementTree.fromstring(curves.plot(rows, "control_steps", "control steps"))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ppo, 2 seeds", "grpo, 2 seeds"} <= set(texts)
    lines = [e for e in root.iter("{http://www.w3.org/2000/svg}path") if e.get("class", "").startswith("line")]
    assert len(lines) == 2


def test_runs_of_each_variant_and_seed_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained = []

    def train(config):
        directory = config.output / config.name
        directory.mkdir(parents=True, exist_ok=True)
        claim_run_directory(directory, config)
        (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, METRICS)))
        success = {"in_distribution": {"success": 0.5}}
        (directory / "summary.json").write_text(json.dumps({"base": success, "final": success}))
        trained.append((config.name, config.seed, config.algorithm.kind, config.algorithm.chunk_share))
        return directory

    monkeypatch.setattr(curves, "train", train)
    curves.run(tmp_path / "out", {"ppo": 2, "grpo-20-percent": 2}, tmp_path / "runs", ["iterations=7"])
    assert trained == [
        ("ppo-seed0", 0, "ppo", 1.0),
        ("ppo-seed1", 1, "ppo", 1.0),
        ("grpo-20-percent-seed0", 0, "grpo", 0.2),
        ("grpo-20-percent-seed1", 1, "grpo", 0.2),
    ]
    result = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert result["runs"].keys() == {name for name, *_ in trained}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("curves.json", "success.md", "success-over-samples.svg", "success-over-time.svg")
    }
    curves.run(tmp_path / "out", {"ppo": 3}, tmp_path / "runs", ["iterations=7"])
    assert [name for name, *_ in trained[4:]] == ["ppo-seed2"], "finished runs are not repeated"
    assert len(json.loads((tmp_path / "out" / "curves.json").read_text())["runs"]) == 3
    assert (tmp_path / "out" / "success.md").read_text().splitlines()[2:] == [
        "| ppo | 50.0% -> 50.0%, 50.0%, 50.0% | 250, 250, 250; 2.0, 2.0, 2.0 |"
    ]
    with pytest.raises(OutputError, match="already holds another run"):
        curves.run(tmp_path / "out", {"ppo": 1}, tmp_path / "runs", ["iterations=8"])
    with pytest.raises(ConfigError, match="unknown 'pppo'; known: ppo, apart, apart-async, ppo-half"):
        curves.run(tmp_path, {"pppo": 1}, tmp_path, [])


def test_experiments_name_variants_and_every_variant_is_a_recipe():
    for variants in curves.EXPERIMENTS.values():
        assert variants.keys() <= curves.VARIANTS.keys()
    for recipe, changes in curves.VARIANTS.values():
        load_recipe(recipe, changes)
    with pytest.raises(ConfigError, match="unknown 'fourway'; known: four-way, flow, ablations"):
        curves.find_experiment("fourway")
