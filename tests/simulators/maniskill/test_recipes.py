"""Published recipes of put on plate train two iterations in ManiSkill itself, on generated assets and the CPU."""

import pytest
from typer.testing import CliRunner

from recipe_runs import few, names, run_two_iterations, tiny_checkpoint
from treadle.cli import app
from treadle.config.recipes import read_recipe

pytestmark = pytest.mark.simulator


@pytest.mark.parametrize("name", names("maniskill"))
def test_two_iterations(name, tmp_path):
    recipe = read_recipe(name)
    options = ["simulator.options.assets=", "simulator.options.device=cpu"]
    run_two_iterations(recipe, tmp_path, *few(recipe), *options, succeeds=False)


def test_assets_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "rl4vla/maniskill-openvla-ppo"
    checkpoint = tiny_checkpoint(read_recipe(name), tmp_path)
    done = CliRunner().invoke(app, ["train", name, f"policy.checkpoint={checkpoint}", "device=cpu"])
    assert done.exit_code == 2
    assert "put-on-plate: maniskill_assets/more_table/model_db.json is missing" in " ".join(done.stderr.split())
