"""What a policy sees of a batch of slots.

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
    instructions: list[str]
    """B instructions, as the scenario words them."""

    @classmethod
    def empty(cls, slots: int, cameras: int, height: int, width: int, proprioception: int, state: int) -> "Observation":
        """Zeroed arrays for `slots` rows."""
        return cls(
            frames=np.zeros((slots, cameras, height, width, 3), np.uint8),
            proprioception=np.zeros((slots, proprioception), np.float32),
            state=np.zeros((slots, state), np.float32),
            instructions=[""] * slots,
        )

    def take(self, rows: NDArray[np.intp]) -> "Observation":
        """A copy of the given rows, in the given order."""
        return Observation(
            self.frames[rows], self.proprioception[rows], self.state[rows], [self.instructions[row] for row in rows]
        )
