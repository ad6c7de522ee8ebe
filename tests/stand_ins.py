"""Simulators that take the options of the real ones and show and take what those do, without their packages: frames of
noise, and an episode succeeds or not by what its actions are.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fake_simulator import FakeSimulator
from treadle.config.schema import SimulatorConfig
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.plugins import import_callable
from treadle.simulators.build import find_simulator
from treadle.simulators.libero.suites import STANDARD
from treadle.simulators.maniskill.put_on_plate.settings import SETTINGS
from treadle.simulators.protocol import ActionDimension, SimulatorSpec, Slots, tool_motions

SIZE = 32
JOINTS = tuple(ActionDimension(f"joint {i}", "absolute") for i in range(14))
SUITES = {"libero": ("train", *STANDARD), "maniskill": ("train", *SETTINGS), "robotwin": ("train",)}
SHOWN = {"libero": (tool_motions(0.05), 8, 21), "maniskill": (tool_motions(1.0), 8, 10), "robotwin": (JOINTS, 14, 0)}
"""Actions, and how many numbers of proprioception and privileged state there are."""


class StandIn(FakeSimulator):
    """In the place of the simulator `real`, whose options it takes. Raises TypeError for others."""

    def __init__(self, slots: int, *, real: str, horizon: int, threads: int, **options: Any) -> None:
        super().__init__(slots, horizon=horizon)
        target, _ = find_simulator(real)
        inspect.signature(import_callable("real", target, "class")).bind(slots, horizon=horizon, **options)
        actions, proprioception, state = SHOWN[real]
        cameras = tuple(options.get("cameras", ("front",)))
        together = options.get("path_actions", 1)
        self.spec = SimulatorSpec(
            real, cameras, SIZE, SIZE, actions, proprioception, state, horizon, 5.0, actions_together=together
        )

    def suites(self) -> tuple[str, ...]:
        return SUITES[self.spec.name]

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        assert suite in self.suites(), suite
        return [Scenario(self.spec.name, suite, "task", split, i, f"put it on plate {i}") for i in range(20)]

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        out = Outcome.empty(len(actions), actions.shape[1], self.spec.state_dim)
        for row, slot in enumerate(slots.tolist()):
            self.steps[slot] += int(limits[row])
            # As good as chance, yet the same for the same actions.
            if np.sin(1e4 * float(actions[row].sum())) > 0.3:
                last = int(limits[row]) - 1
                out.reward[row, last], out.success[row, last], out.terminated[row, last] = 1, True, True
        return out

    def observe(self, slots: Slots, out: Observation) -> None:
        for slot in slots.tolist():
            what = self.now[slot]
            assert what is not None
            seed = np.random.default_rng([what.index, int(self.steps[slot])])
            out.frames[slot] = seed.integers(0, 256, out.frames[slot].shape, np.uint8)
            out.proprioception[slot] = seed.uniform(-1, 1, self.spec.proprioception_dim)


def stand_in_for(simulator: SimulatorConfig) -> list[str]:
    """Overrides that put a stand-in where a recipe's simulator is."""
    assert simulator.name in SHOWN
    return ["simulator.name=stand_ins:StandIn", f"simulator.options.real={simulator.name}"]
