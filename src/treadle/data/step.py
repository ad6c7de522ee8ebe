"""What came of a chunk of actions.

Shapes: n the slots that were stepped, B all slots of a host, C actions of a chunk, S privileged state.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario


@dataclass(slots=True)
class Outcome:
    """What a simulator returns for the actions it played, per action. Entries of actions not played are zero."""

    reward: NDArray[np.float32]
    """[n, C]"""
    terminated: NDArray[np.bool_]
    """[n, C], the task ended here, by success or failure; at most one per row, and nothing is played after it."""
    success: NDArray[np.bool_]
    """[n, C], the goal holds after this action."""
    state: NDArray[np.float32]
    """[n, C, S], the privileged state after this action; S is 0 where the simulator offers none."""

    @classmethod
    def empty(cls, rows: int, chunk: int, state_dim: int = 0) -> "Outcome":
        """Zeros, to be filled."""
        shape = (rows, chunk)
        return cls(
            reward=np.zeros(shape, np.float32),
            terminated=np.zeros(shape, np.bool_),
            success=np.zeros(shape, np.bool_),
            state=np.zeros((*shape, state_dim), np.float32),
        )


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """Statistics of one finished episode."""

    scenario: Scenario
    success_once: bool
    """The goal held after some action of the episode."""
    success_at_end: bool
    """The goal held after the last action."""
    episode_return: float
    """Undiscounted sum of rewards."""
    length: int
    """Control steps played."""
    slot: int = field(default=0, compare=False)
    """Where it was played."""


@dataclass(slots=True)
class Step:
    """What a host returns for one chunk over all of its slots. `valid` is False for actions that were not played."""

    reward: NDArray[np.float32]
    """[B, C]"""
    terminated: NDArray[np.bool_]
    """[B, C]"""
    truncated: NDArray[np.bool_]
    """[B, C], the horizon was reached here without termination."""
    success: NDArray[np.bool_]
    """[B, C]"""
    valid: NDArray[np.bool_]
    """[B, C], the action was played; the ending action itself is valid."""
    state: NDArray[np.float32]
    """[B, C, S], the privileged state after each action; zero where it was not played."""
    final: Observation
    """The last observations of the episodes that were truncated in this chunk, one row each, in order of slot."""
    final_slots: NDArray[np.intp]
    """[rows of `final`], their slots."""
    episodes: list[EpisodeResult]
    """The episodes that ended in this chunk, in order of slot."""
