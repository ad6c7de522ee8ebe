from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.simulators.tabletop import Tabletop


@pytest.fixture
def build() -> Iterator[Callable[..., Tabletop]]:
    """Makes simulators that are closed after the test."""
    made: list[Tabletop] = []

    def make(slots: int, **options: Any) -> Tabletop:
        made.append(Tabletop(slots, **options))
        return made[-1]

    yield make
    for simulator in made:
        simulator.close()


@pytest.fixture
def observe() -> Callable[[Tabletop], Observation]:
    def read(simulator: Tabletop) -> Observation:
        out = simulator.spec.observation(simulator.slots)
        simulator.observe(np.arange(simulator.slots), out)
        return out

    return read


@pytest.fixture
def random_actions() -> Callable[[int, int], NDArray[np.float32]]:
    """[count, steps, 7]; row i is the same for every count."""

    def draw(count: int, steps: int) -> NDArray[np.float32]:
        rows = [
            np.random.default_rng(i).uniform(-1, 1, (steps, 7)) * ([0.03] * 3 + [0.15] * 3 + [1]) for i in range(count)
        ]
        return np.stack(rows).astype(np.float32)

    return draw
