"""Demonstrations cut into decisions: the chunk of actions that begins at each frame.

Shapes: N frames of all episodes, n some of them, C actions of a chunk, A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.data.demonstrations import Demonstrations
from treadle.errors import ConfigError
from treadle.simulators.protocol import ActionDimension
from treadle.supervised.checks import check_dimensions

_MOST_MEASURED = 2**22
"""Numbers of one dimension that statistics of differences are taken of."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of actions, cut when they are asked for.

    Past the end of an episode the robot stands still: motions are 0, grippers stay what they were (Octo's
    `chunk_act_obs` with its mask of absolute actions). What a target would have been is not known: targets stay too,
    but do not count unless they are held, as LeRobot's `action_is_pad` has it.
    """

    actions: NDArray[np.float32]
    """[N, A]"""
    last: NDArray[np.int64]
    """[N] the last frame of each frame's episode."""
    size: int
    """C"""
    relative: NDArray[np.bool_]
    """[A] motions."""
    absolute: NDArray[np.bool_]
    """[A] targets."""
    held: bool
    """Targets that stay past an end count."""
    origin: NDArray[np.float32] | None
    """[N, A] what targets are learned as differences from; None where they are learned as they are."""

    @classmethod
    def of(
        cls,
        demonstrations: Demonstrations,
        size: int,
        dimensions: Sequence[ActionDimension],
        *,
        held: bool = False,
        deltas: bool = False,
    ) -> "Chunks":
        """The chunks of `size` actions of a data set. `deltas`: targets are learned as differences from the
        proprioception at the decision, whose first numbers are those that the action sets.

        Raises ConfigError for actions of other dimensions, and for proprioception that is too short.
        """
        actions, episode, state = demonstrations.actions, demonstrations.episode_index, demonstrations.state
        check_dimensions(actions, dimensions)
        kinds = [dimension.kind for dimension in dimensions]
        absolute = np.array([kind == "absolute" for kind in kinds])
        if deltas and state.shape[1] < actions.shape[1]:
            raise ConfigError(
                f"robot.deltas: actions have {actions.shape[1]} dimensions, proprioception has {state.shape[1]}; "
                "targets are differences from the numbers at the same places of it (columns.state names its column)"
            )
        origin = np.where(absolute, state[:, : actions.shape[1]], np.float32(0)) if deltas else None
        last = np.searchsorted(episode, episode, side="right") - 1
        return cls(actions, last, size, np.array([kind == "relative" for kind in kinds]), absolute, held, origin)

    def take(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The chunks [n, C, A] that start at some frames, and which of their actions count [n, C]."""
        places = rows[:, None] + np.arange(self.size)
        last = self.last[rows][:, None]
        over = places > last
        chunks = self.actions[np.minimum(places, last)]
        chunks[over[..., None] & self.relative] = 0
        if self.origin is not None:
            chunks -= self.origin[rows][:, None]
        counted = np.ones_like(over) if self.held or not self.absolute.any() else ~over
        return chunks, counted

    def learned_actions(self) -> NDArray[np.float32]:
        """Actions [M, A] that statistics are taken of: those of the data set, or differences at all places of chunks,
        of frames that are evenly spread where there are very many.
        """
        if self.origin is None:
            return self.actions
        step = max(1, len(self.actions) * self.size // _MOST_MEASURED)
        chunks, counted = self.take(np.arange(0, len(self.actions), step))
        return chunks[counted]
