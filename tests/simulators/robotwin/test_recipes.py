"""Published recipes of RoboTwin train two iterations in RoboTwin itself, on miniature assets."""

import json

import pytest
from typer.testing import CliRunner

from recipe_runs import few, names, run_two_iterations, tiny_checkpoint
from treadle.cli import app
from treadle.config.recipes import read_recipe

pytestmark = pytest.mark.simulator
TASK = "beat_block_hammer"


def _task(name: str) -> str:
    return name.removeprefix("rlinf/robotwin-").removesuffix("-grpo")


@pytest.fixture
def seeds(tmp_path):
    path = tmp_path / "seeds.json"
    tasks = {_task(name) for name in names("robotwin")}
    path.write_text(json.dumps({task: {"success_seeds": [100_000, 100_001, 100_002]} for task in tasks}))
    return path


# Recipes differ in task, horizon and rate.
@pytest.mark.parametrize(
    "name", [name if TASK in name else pytest.param(name, marks=pytest.mark.full) for name in names("robotwin")]
)
def test_two_iterations(name, tmp_path, seeds):
    recipe = read_recipe(name)
    options = {"assets": "miniature", "variation": "clean", "train_seeds": seeds, "evaluation_seeds": seeds}
    given = [f"simulator.options.{key}={value}" for key, value in options.items()]
    # A decision of 25 actions takes seconds of physics.
    given += ["decisions=1", "simulator.horizon=25", "evaluation.horizon=25", "algorithm.rounds=1"]
    run_two_iterations(recipe, tmp_path, *few(recipe), *given, succeeds=False)


def test_files_that_are_missing_are_named(tmp_path, seeds, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"rlinf/robotwin-{TASK}-grpo"
    checkpoint = tiny_checkpoint(read_recipe(name), tmp_path)
    command = ["train", name, f"policy.checkpoint={checkpoint}", "device=cpu", "simulator.slots=8"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "simulator.options.train_seeds: train_seeds.json: " in " ".join(done.stderr.split())
    given = [f"simulator.options.{split}_seeds={seeds}" for split in ("train", "evaluation")]
    done = CliRunner().invoke(app, [*command, *given])
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert "simulator.options.assets: " in said
    assert "missing below" in said
    assert "robotwin-assets/assets/embodiments/piper/config.yml" in said
