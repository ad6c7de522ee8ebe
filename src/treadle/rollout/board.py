"""What a lane and the policy exchange, in memory that threads and processes share. Imports numpy, never torch.

Shapes: B slots, C actions of a chunk, A action dimensions, K = C * A tokens, P proprioception, S privileged state.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.simulators.process import SharedFile
from treadle.simulators.protocol import SimulatorSpec
from treadle.simulators.shared_arrays import Layout, layout_bytes, map_arrays, observation_layout


@dataclass(frozen=True, slots=True)
class BoardShape:
    """Everything the layout of a board follows from."""

    slots: int
    chunk: int
    spec: SimulatorSpec


class Board:
    """Arrays with one row a slot, laid out once: a simulator writes frames where the policy reads them.

    Each row has one writer at a time. A worker owns its rows from the moment it is told to play until it reports back;
    the policy's side owns them in between.
    """

    observation: Observation
    """What the policy sees; its instructions are kept by each side for itself."""
    final: Observation
    """In rows of slots whose episode just ended, its last observation."""
    noise: NDArray[np.float32]
    """[B, K] uniform in [0, 1), belonging to the slot's scenario and decision."""
    actions: NDArray[np.float32]
    """[B, C, A]"""
    reward: NDArray[np.float32]
    """[B, C]"""
    terminated: NDArray[np.bool_]
    """[B, C]"""
    truncated: NDArray[np.bool_]
    """[B, C]"""
    valid: NDArray[np.bool_]
    """[B, C]"""
    state: NDArray[np.float32]
    """[B, C, S], the privileged state after each action; zero where it was not played."""
    scenario_index: NDArray[np.int64]
    """[B] `Scenario.index` of what the slot plays, -1 where it idles."""
    elapsed: NDArray[np.int64]
    """[B] control steps that the slot's episode has had, 0 where it idles."""
    episodes: NDArray[np.int64]
    """[B] episodes that the slot was given, the current one among them."""

    def __init__(self, shape: BoardShape, file: SharedFile | int | None = None) -> None:
        """Map the board from an open file that is large enough, or make it in private memory."""
        self.shape = shape
        arrays = map_arrays(_layout(shape), file)
        for name in ("observation", "final"):
            parts = [arrays.pop(f"{name}.{part}") for part in ("frames", "proprioception", "state")]
            setattr(self, name, Observation(*parts, [""] * shape.slots))  # type: ignore[arg-type]
        for name, array in arrays.items():
            setattr(self, name, array)

    def rows(self, first: int, stop: int) -> Observation:
        """The observations of slots `first` to `stop`, as views."""
        seen = self.observation
        return Observation(
            seen.frames[first:stop],
            seen.proprioception[first:stop],
            seen.state[first:stop],
            [""] * (stop - first),
        )


def board_bytes(shape: BoardShape) -> int:
    """Memory that a board takes."""
    return layout_bytes(_layout(shape))


def _layout(shape: BoardShape) -> Layout:
    spec, slots, chunk = shape.spec, shape.slots, shape.chunk
    seen = observation_layout(slots, spec)
    return {
        **{f"observation.{name}": entry for name, entry in seen.items()},
        **{f"final.{name}": entry for name, entry in seen.items()},
        "noise": ((slots, chunk * spec.action_dim), np.float32),
        "actions": ((slots, chunk, spec.action_dim), np.float32),
        "reward": ((slots, chunk), np.float32),
        **dict.fromkeys(("terminated", "truncated", "valid"), ((slots, chunk), np.bool_)),
        "state": ((slots, chunk, spec.state_dim), np.float32),
        **dict.fromkeys(("scenario_index", "elapsed", "episodes"), ((slots,), np.int64)),
    }
