"""Each published recipe trains two iterations: with its own policy's class, algorithm, adapters and options, on a
stand-in for its simulator. `tests/simulators/*/test_recipes.py` does the same with the real ones.
"""

import json

import pytest

from recipe_runs import names, run_two_iterations
from stand_ins import stand_in_for
from treadle.config.loading import configure
from treadle.config.recipes import read_recipe


@pytest.mark.parametrize("name", names())
def test_two_iterations(name, tmp_path):
    recipe = read_recipe(name)
    config = configure(recipe)
    run = run_two_iterations(recipe, tmp_path, "collection.kind=threads", *stand_in_for(config.simulator))
    assert json.loads((run / "evaluation" / "final.json").read_text())["suites"].keys() == {*config.evaluation.suites}
