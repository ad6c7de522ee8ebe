"""Arrays laid out once in memory that threads and processes share. Imports numpy alone."""

import mmap
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.process import SharedFile
from treadle.simulators.protocol import SimulatorSpec

Layout = dict[str, tuple[tuple[int, ...], type[np.generic]]]
"""Shape and type of each array, in order."""

_ALIGNMENT = 64


def observation_layout(slots: int, spec: SimulatorSpec) -> Layout:
    """What an `Observation` of `slots` slots holds, beside its instructions."""
    return {
        "frames": ((slots, len(spec.cameras), spec.height, spec.width, 3), np.uint8),
        "proprioception": ((slots, spec.proprioception_dim), np.float32),
        "state": ((slots, spec.state_dim), np.float32),
    }


def layout_bytes(layout: Layout) -> int:
    """Memory that the arrays take."""
    return max(1, sum(_bytes(dims, dtype) for dims, dtype in layout.values()))


def map_arrays(layout: Layout, file: SharedFile | int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays, in an open file that is large enough, or in private memory. They keep the memory."""
    number = file.number if isinstance(file, SharedFile) else file
    memory = mmap.mmap(-1 if number is None else number, layout_bytes(layout))
    arrays: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, (dims, dtype) in layout.items():
        arrays[name] = np.frombuffer(memory, dtype, prod(dims), offset).reshape(dims)
        offset += _bytes(dims, dtype)
    return arrays


def _bytes(dims: tuple[int, ...], dtype: type[np.generic]) -> int:
    size = prod(dims) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
