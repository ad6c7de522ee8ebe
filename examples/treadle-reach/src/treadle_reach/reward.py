"""A reward of one's own: a subclass of a simulator that changes what its outcomes are worth."""

import numpy as np
from numpy.typing import NDArray

from treadle.data.step import Outcome
from treadle.simulators.protocol import Slots
from treadle_reach.simulator import Reach


class ProgressReach(Reach):
    """Also pays for every step by how much nearer the hand came. Success is what it was, so results compare."""

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """See `Simulator.step`. The outcome's state after each action tells all that a reward needs."""
        before = self.state(slots)
        outcome = super().step(slots, actions, limits)
        states = np.concatenate([before[:, None], outcome.state], 1)
        distance = np.linalg.norm(states[..., :2] - states[..., 2:], axis=-1)
        # Where an episode has ended, nothing was played, and the state is zero.
        played = outcome.state.any(-1)
        outcome.reward += np.where(played, distance[:, :-1] - distance[:, 1:], 0)
        return outcome
