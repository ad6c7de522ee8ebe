"""A simulator: a hand in the plane has to reach a red dot. Imports numpy alone.

Shapes: n slots addressed by a call, C actions of a chunk, S privileged state.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.simulators.checks import check_suite
from treadle.simulators.enumeration import Enumeration
from treadle.simulators.protocol import ActionDimension, SimulatorSpec, Slots

SIZE = 16
SPEED = 0.2
INSTRUCTION = "reach the red dot"
SUITES = ("train",)
RED, BLACK, GREY = (200, 30, 30), (0, 0, 0), 230


class Reach:
    """Slots in which a hand starts in the middle of the square [-1, 1]^2 and moves by at most 0.2 a step.

    Args:
        slots: episodes at once.
        horizon: control steps after which the host cuts an episode.
        threads: unused; a step takes microseconds.
        reach: how near is near enough.
    """

    def __init__(self, slots: int, *, horizon: int = 20, threads: int = 1, reach: float = 0.15) -> None:
        self.slots, self.reach = slots, reach
        self.spec = SimulatorSpec(
            name="reach",
            cameras=("top",),
            height=SIZE,
            width=SIZE,
            actions=(ActionDimension("x", "relative", metres=1.0), ActionDimension("y", "relative", metres=1.0)),
            proprioception_dim=2,
            state_dim=4,
            horizon=horizon,
            control_hz=10.0,
        )
        self.hand = np.zeros((slots, 2))
        self.dot = np.zeros((slots, 2))

    def suites(self) -> tuple[str, ...]:
        """One; others would show what training has not."""
        return SUITES

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """A million scenes in each split."""
        check_suite("reach", suite, split, SUITES)
        return Enumeration(1_000_000, lambda index: Scenario("reach", suite, "reach", split, index, INSTRUCTION))

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """There is one thing to ask for."""
        return [INSTRUCTION]

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """All that is random follows from the scenario."""
        for slot, scenario in zip(slots, scenarios, strict=True):
            rng = np.random.default_rng([scenario.split == "evaluation", scenario.index])
            self.dot[slot] = rng.uniform(-0.8, 0.8, 2)
            self.hand[slot] = 0

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """See `Simulator.step`: 1 where the dot is reached, which ends the episode."""
        outcome = Outcome.empty(len(actions), actions.shape[1], self.spec.state_dim)
        playing = np.ones(len(slots), np.bool_)
        for c in range(actions.shape[1]):
            rows = np.flatnonzero(playing & (c < limits))
            now = slots[rows]
            self.hand[now] = np.clip(self.hand[now] + np.clip(actions[rows, c], -SPEED, SPEED), -1, 1)
            success = np.linalg.norm(self.hand[now] - self.dot[now], axis=1) < self.reach
            outcome.success[rows, c] = outcome.terminated[rows, c] = outcome.reward[rows, c] = success
            outcome.state[rows, c] = self.state(now)
            playing[rows] = ~success
        return outcome

    def state(self, slots: Slots) -> NDArray[np.float64]:
        """[n, S]: where the hand is, and where the dot is."""
        return np.concatenate([self.hand[slots], self.dot[slots]], 1)

    def observe(self, slots: Slots, out: Observation) -> None:
        """A picture, and where the hand is."""
        out.frames[slots, 0] = self.render(slots, SIZE)
        out.proprioception[slots] = self.hand[slots]
        out.state[slots] = self.state(slots)

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """[n, size, size, 3] from above."""
        y, x = np.mgrid[1 : -1 : size * 1j, -1 : 1 : size * 1j]
        pixels = np.stack([x, y], -1)
        frames = np.full((len(slots), size, size, 3), GREY, np.uint8)
        for places, radius, colour in ((self.dot, 0.2, RED), (self.hand, 0.1, BLACK)):
            frames[np.linalg.norm(pixels - places[slots, None, None], axis=-1) < radius] = colour
        return frames

    def close(self) -> None:
        """Nothing to release."""
