# ManiSkill is in an environment of its own.
# pyright: reportMissingImports=false

"""ManiSkill's own loop: an environment that draws, and where it can rewards, with every step."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario
from treadle.simulators.maniskill.built_in import BUILT_IN
from treadle.simulators.maniskill.engine import backend
from treadle.simulators.maniskill.simulator import ManiSkill
from treadle.simulators.maniskill.task import to_controller


class Loop:
    """A `BareLoop`."""

    def __init__(self, environment: Any, scale: tuple[float, float]) -> None:
        self._environment = environment
        self._scale = scale

    def play(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`."""
        for command in to_controller(actions, self._scale):
            self._environment.step(command)

    def close(self) -> None:
        """See `BareLoop.close`."""
        self._environment.close()


def open_loop(simulator: ManiSkill, scenario: Scenario) -> Loop:
    """At the start of a scenario."""
    task = simulator.task
    shown: dict[str, Any] = {"obs_mode": "rgb"}
    if task.name in BUILT_IN:
        shown["reward_mode"] = "normalized_dense"
    environment = task.make(1, simulator.spec.height, backend(simulator._device) | shown)  # noqa: SLF001
    seed, options = task.start(scenario)
    environment.reset(seed=seed, options=options)
    return Loop(environment, task.scale)
