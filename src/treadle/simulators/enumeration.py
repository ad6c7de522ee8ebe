"""Lazy enumerations of scenarios, and the square frames that people are shown. Imports numpy alone."""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario


class Enumeration(Sequence[Scenario]):
    """`length` scenarios, each made by `scenario_at(index)` when it is asked for."""

    def __init__(self, length: int, scenario_at: Callable[[int], Scenario]) -> None:
        self._length = length
        self._scenario_at = scenario_at

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Scenario: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scenario]: ...
    def __getitem__(self, index: int | slice) -> Scenario | list[Scenario]:
        if isinstance(index, slice):
            return [self._scenario_at(i) for i in range(*index.indices(self._length))]
        position = index + self._length if index < 0 else index
        if not 0 <= position < self._length:
            raise IndexError(index)
        return self._scenario_at(position)


def fit_square(frame: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A frame [H, W, 3] as large as fits into [size, size, 3], by nearest pixels, on black."""
    height, width = frame.shape[:2]
    longest = max(height, width)
    rows, columns = max(1, size * height // longest), max(1, size * width // longest)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - rows) // 2, (size - columns) // 2
    picked = frame[np.arange(rows) * height // rows][:, np.arange(columns) * width // columns]
    square[top : top + rows, left : left + columns] = picked
    return square
