"""What ships with the package: recipes that load, and a base checkpoint that acts."""

import pytest

from treadle.config.checkpoints import checkpoints, resolve_checkpoint
from treadle.config.loading import load_recipe
from treadle.config.named_files import recipe_files
from treadle.config.recipes import read_recipe
from treadle.config.schema import EvaluationConfig, LoadingConfig, SimulatorConfig, TrainConfig
from treadle.config.supervised import SupervisedConfig
from treadle.evaluation.evaluate import evaluate_checkpoint

SUPERVISED = {"libero-object-base", "maniskill-pushcube-base", "own-robot"} | {
    f"tabletop-base{ending}" for ending in ("", "-flow", "-openvla")
}


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_recipe_loads_and_says_what_it_is(name: str) -> None:
    given = [f"{key}=mine" for key in read_recipe(name).about.needs]
    config = load_recipe(name, given, SupervisedConfig if name in SUPERVISED else TrainConfig)
    assert config.name == name.replace("/", "-")
    assert len(recipe_files()[name].read_text().splitlines()[0]) > 20


@pytest.mark.parametrize("name", ["quickstart", "tabletop-flow"])
def test_it_starts_from_a_packaged_checkpoint_which_is_small(name: str) -> None:
    base = load_recipe(name).policy.checkpoint
    assert base in checkpoints()
    assert sum(path.stat().st_size for path in resolve_checkpoint(base).iterdir()) < 3e6


def test_base_checkpoint_sometimes_succeeds() -> None:
    folder = resolve_checkpoint("tabletop-base")
    simulator = SimulatorConfig(slots=32, horizon=60, threads=1)
    evaluation = EvaluationConfig(suites=("train",), episodes=32, slots=32)
    report = evaluate_checkpoint(folder, LoadingConfig(), simulator, evaluation, "cpu")
    # The documented base succeeds in 30 to 60 %; 32 episodes leave room on both sides.
    assert 0.15 <= report["suites"]["train"]["success"] <= 0.85
