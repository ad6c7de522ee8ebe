"""What is packaged for a simulator."""

from typing import Any

from pydantic import BaseModel

from treadle.config.checkpoints import checkpoints
from treadle.config.loading import load_recipe
from treadle.config.recipes import recipes
from treadle.config.schema import TrainConfig
from treadle.errors import ConfigError


def recipe_of(simulator: str, model: type[BaseModel]) -> str | None:
    """The first packaged recipe of a command, told by its configuration class, that is for a simulator, if any."""
    for name in recipes():
        try:
            config: Any = load_recipe(name, model=model)
        except ConfigError:
            continue  # Of another command.
        if config.simulator.name == simulator:
            return name
    return None


def checkpoint_of(simulator: str) -> str | None:
    """The checkpoint of a simulator's first packaged recipe for `treadle train`, where it is packaged, too."""
    recipe = recipe_of(simulator, TrainConfig)
    name = None if recipe is None else load_recipe(recipe).policy.checkpoint
    return name if name in checkpoints() else None
