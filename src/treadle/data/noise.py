"""Random numbers that belong to a key, whatever else is drawn beside them. Imports numpy alone.

A number is a hash of its key and its position (splitmix64; Steele, Lea and Flood 2014), so a sample has the same
numbers in any batch, in any order, and on any device.
Shapes: B keys.
"""

import math

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = 2**64 - 1


def noise_key(*parts: int | NDArray[np.integer]) -> Keys:
    """Keys [B] of integers, or of arrays [B] of integers, broadcast against each other. Their order matters."""
    key: int | Keys = 0
    for part in parts:
        if isinstance(part, int) and isinstance(key, int):
            # As below; numpy takes ten times as long for a single number.
            key = (key + int(_STEP) * (part + 1)) & _MASK
            key = ((key ^ (key >> 30)) * int(_FIRST)) & _MASK
            key = ((key ^ (key >> 27)) * int(_SECOND)) & _MASK
            key ^= key >> 31
        else:
            number = np.uint64(part & _MASK) if isinstance(part, int) else part.astype(np.uint64)
            key = _mix(np.uint64(key) + _STEP * (np.atleast_1d(number) + np.uint64(1)))
    return np.atleast_1d(np.asarray(key, np.uint64))


def uniform(keys: Keys, *shape: int) -> NDArray[np.float32]:
    """Uniform numbers [B, *shape] in [0, 1), multiples of 2^-24."""
    bits = _bits(keys, math.prod(shape)) >> np.uint64(40)
    return (bits.astype(np.float32) * np.float32(2**-24)).reshape(len(keys), *shape)


def normal(keys: Keys, *shape: int) -> NDArray[np.float32]:
    """Standard normal numbers [B, *shape], by the transform of Box and Muller."""
    bits = (_bits(keys, 2 * math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2**-53
    radius = np.sqrt(-2 * np.log1p(-bits[:, ::2]))
    numbers = radius * np.cos(2 * math.pi * bits[:, 1::2])
    return numbers.astype(np.float32).reshape(len(keys), *shape)


def _bits(keys: Keys, count: int) -> NDArray[np.uint64]:
    """64 random bits [B, count]: the first `count` numbers of splitmix64 from each key."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * _STEP
    return _mix(keys[:, None] + counters)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every bit of the input changes half of the output's."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
