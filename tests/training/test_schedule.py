"""The learning rate over a run."""

import pytest

from treadle.training.schedule import learning_rate_share


def shares(warmup: int, final: float, shape, steps: int = 7) -> list[float]:
    return [learning_rate_share(position, steps, warmup, final, shape) for position in range(steps)]


def test_linear_growth_and_decay():
    assert shares(2, 0.2, "linear") == pytest.approx([1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])


def test_cosine_decay():
    # Half a cosine over four steps: 1, (1 + cos 45)/2, 1/2, ...
    quarter = (1 + 0.5**0.5) / 2
    assert shares(0, 0.0, "cosine", 5) == pytest.approx([1, quarter, 0.5, 1 - quarter, 0], abs=1e-12)
    assert shares(0, 1.0, "cosine") == [1] * 7


def test_nothing_before_the_first_iteration():
    assert learning_rate_share(-1, 7, 0, 1.0, "linear") == 0
