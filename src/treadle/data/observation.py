"""What a policy sees of a batch of slots; what is asked of it stands in the slots' scenarios.

Shapes: B slots, H and W pixels, P proprioception, S privileged state.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Observation:
    """Arrays that a simulator writes into, one row a slot; frames are uint8 until the policy reads them."""

    frames: NDArray[np.uint8]
    """[B, cameras, H, W, 3], RGB, upright."""
    proprioception: NDArray[np.float32]
    """[B, P], raw units of the simulator; P may be 0."""
    state: NDArray[np.float32]
    """[B, S], privileged simulator state for a critic; S may be 0. A policy never reads it."""

    @classmethod
    def empty(cls, slots: int, cameras: int, height: int, width: int, proprioception: int, state: int) -> "Observation":
        """Zeroed arrays for `slots` rows."""
        return cls(
            frames=np.zeros((slots, cameras, height, width, 3), np.uint8),
            proprioception=np.zeros((slots, proprioception), np.float32),
            state=np.zeros((slots, state), np.float32),
        )

    def take(self, rows: NDArray[np.intp] | slice) -> "Observation":
        """The given rows, in the given order: a copy, or for a slice the rows themselves."""
        return Observation(self.frames[rows], self.proprioception[rows], self.state[rows])
