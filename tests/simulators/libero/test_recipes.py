"""Published recipes of LIBERO train two iterations on LIBERO itself, one of each publisher and policy."""

import pytest

from recipe_runs import few, run_two_iterations
from treadle.config.recipes import read_recipe

pytestmark = pytest.mark.simulator
# Two cameras and regressed actions; another suite; all tasks; adapters.
NAMES = (
    "openvla-oft/libero-spatial-grpo", "simplevla-rl/libero-goal-grpo", "rlinf/libero-130-grpo",
    "one-gpu/libero-10-grpo",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_two_iterations(name, tmp_path):
    recipe = read_recipe(name)
    given = ["simulator.options.image_size=64", "simulator.options.render=fast", "algorithm.rounds=1"]
    # Each task is a scene to build; a choice of tasks is for a single suite.
    if recipe.settings["simulator"]["options"]["suite"] != "130":
        given.append("simulator.options.tasks=[0]")
    run_two_iterations(recipe, tmp_path, *few(recipe), *given, succeeds=False)
