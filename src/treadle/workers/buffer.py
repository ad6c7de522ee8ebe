"""The memory that workers and the policy's side share. Threads use it directly, processes by an inherited file.
Imports numpy, never torch.

Shapes: B slots, C actions of a chunk, A action dimensions, P proprioception, S privileged state.
"""

import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.simulators.protocol import SimulatorSpec

_ALIGNMENT = 64
_Layout = dict[str, tuple[tuple[int, ...], type[np.generic]]]
"""Shape and type of each array, in order."""


class SharedFile:
    """Memory that worker processes inherit. It has no name, so nothing is left behind, however they end."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.number = os.memfd_create("treadle")
        else:
            with tempfile.TemporaryFile() as temporary:
                self.number = os.dup(temporary.fileno())

    def resize(self, size: int) -> None:
        """Give the memory its size, in bytes. Pages that nobody writes to take no memory of the machine."""
        os.ftruncate(self.number, size)

    def close(self) -> None:
        """Close the file; mapped memory stays until its arrays are gone."""
        os.close(self.number)


@dataclass(frozen=True, slots=True)
class BufferShape:
    """Everything that decides the layout of a buffer."""

    slots: int
    chunk: int
    spec: SimulatorSpec


class SharedBuffer:
    """Arrays with a row for each slot, laid out once: simulators write frames where the policy reads them.

    Each row has one writer at a time. A worker owns its rows from the moment it is told to play until it reports back;
    the policy's side owns them in between.
    """

    observation: Observation
    """The present observations, which the policy reads."""
    final: Observation
    """In rows of slots whose episode just ended, its last observation."""
    actions: NDArray[np.float32]
    """[B, C, A], of the policy, or of a scripted expert in its stead."""
    reward: NDArray[np.float32]
    """[B, C]"""
    terminated: NDArray[np.bool_]
    """[B, C]"""
    truncated: NDArray[np.bool_]
    """[B, C]"""
    success: NDArray[np.bool_]
    """[B, C]"""
    valid: NDArray[np.bool_]
    """[B, C]"""
    state: NDArray[np.float32]
    """[B, C, S], the privileged state after each action; zero where it was not played."""
    scenario_index: NDArray[np.int64]
    """[B] `Scenario.index` of the scenario that the slot plays, -1 where it idles."""
    elapsed: NDArray[np.int64]
    """[B] control steps of the slot's episode so far, 0 where it idles."""

    def __init__(self, shape: BufferShape, file: SharedFile | int | None = None) -> None:
        """Map the buffer from an open file that is large enough, or make it in private memory."""
        self.shape = shape
        number = file.number if isinstance(file, SharedFile) else file
        memory = mmap.mmap(-1 if number is None else number, buffer_bytes(shape))
        arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        for name, (dims, dtype) in _layout(shape).items():
            arrays[name] = np.frombuffer(memory, dtype, prod(dims), offset).reshape(dims)
            offset += _aligned_bytes(dims, dtype)
        for name in ("observation", "final"):
            setattr(self, name, Observation(*(arrays.pop(f"{name}.{part}") for part in _OBSERVED)))
        for name, array in arrays.items():
            setattr(self, name, array)


_OBSERVED = ("frames", "proprioception", "state")


def buffer_bytes(shape: BufferShape) -> int:
    """How many bytes a buffer takes."""
    return max(1, sum(_aligned_bytes(dims, dtype) for dims, dtype in _layout(shape).values()))


def _layout(shape: BufferShape) -> _Layout:
    spec, slots, chunk = shape.spec, shape.slots, shape.chunk
    observed: _Layout = {
        "frames": ((slots, len(spec.cameras), spec.height, spec.width, 3), np.uint8),
        "proprioception": ((slots, spec.proprioception_dim), np.float32),
        "state": ((slots, spec.state_dim), np.float32),
    }
    return {
        **{f"{where}.{name}": entry for where in ("observation", "final") for name, entry in observed.items()},
        "actions": ((slots, chunk, spec.action_dim), np.float32),
        "reward": ((slots, chunk), np.float32),
        **dict.fromkeys(("terminated", "truncated", "success", "valid"), ((slots, chunk), np.bool_)),
        "state": ((slots, chunk, spec.state_dim), np.float32),
        **dict.fromkeys(("scenario_index", "elapsed"), ((slots,), np.int64)),
    }


def _aligned_bytes(dims: tuple[int, ...], dtype: type[np.generic]) -> int:
    size = prod(dims) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
