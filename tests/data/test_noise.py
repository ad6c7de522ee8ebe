"""Random numbers that belong to a key."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.data.noise import noise_key, normal, uniform

MANY = noise_key(5, np.arange(50_000))


def test_the_published_numbers_of_splitmix64() -> None:
    """The first outputs of the reference implementation for two seeds, by their upper 24 bits."""
    drawn = uniform(np.array([0, 1234567], np.uint64), 3)
    published = [
        [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
        [6457827717110365317, 3203168211198807973, 9817491932198370423],
    ]
    assert drawn.tolist() == [[(number >> 40) / 2**24 for number in row] for row in published]


def test_frozen_examples() -> None:
    """Runs that are repeated on another machine, or years later, meet the same numbers."""
    keys = noise_key(3, np.arange(2), -1)
    assert keys.tolist() == [13135093728696997705, 6990986219462064126]
    assert (uniform(keys, 2) * 2**24).tolist() == [[12289647, 4876485], [13096831, 12076853]]
    np.testing.assert_allclose(normal(keys, 2), [[-0.410407, 0.1257971], [-0.3281453, -0.5532814]], rtol=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(0, 2**63))
def test_a_samples_numbers_do_not_depend_on_its_batch(order: list[int], seed: int) -> None:
    keys = noise_key(seed, np.arange(10))
    for draw in (uniform, normal):
        assert np.array_equal(draw(keys[order], 2, 3), draw(keys, 2, 3)[order])
        # Nor on how many more are drawn, or in which shape.
        assert np.array_equal(draw(keys, 6).reshape(10, 2, 3), draw(keys, 2, 3))
        assert np.array_equal(draw(keys, 7)[:, :6], draw(keys, 6))


def test_keys_differ_where_any_part_does() -> None:
    rows = np.arange(300)
    keys = [
        noise_key(rows[:, None].repeat(300, 1).ravel(), np.tile(rows, 300)),
        noise_key(rows),
        noise_key(rows, 0),
        noise_key(-1 - rows),
    ]
    # 90,000 pairs, among which (1, 2) is not (2, 1).
    every = np.concatenate([keys[0], keys[1], keys[3]])
    assert len(np.unique(every)) == len(every)
    assert not np.isin(keys[2], keys[1]).any()
    assert noise_key(2**64 - 1) == noise_key(-1)


@pytest.mark.parametrize("entry", [0, 7])
def test_numbers_are_uniform(entry: int) -> None:
    """Over keys that differ in a counter alone, as those of consecutive scenarios and decisions do."""
    numbers = uniform(MANY, 8)[:, entry]
    assert numbers.dtype == np.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    count = len(numbers)
    counts = np.bincount((numbers * 64).astype(int), minlength=64)
    # Chi-square of 63 degrees of freedom: 126 is six deviations above its mean of 63.
    assert ((counts - count / 64) ** 2 / (count / 64)).sum() < 63 + 6 * np.sqrt(126)
    assert abs(numbers.mean() - 1 / 2) < 5 / np.sqrt(12 * count)
    assert abs(numbers.var() - 1 / 12) < 5 / np.sqrt(180 * count)


def test_numbers_are_normal() -> None:
    numbers = normal(MANY, 2)
    assert numbers.dtype == np.float32
    assert np.isfinite(numbers).all()
    deviation = 1 / np.sqrt(len(numbers))
    assert (abs(numbers.mean(0)) < 5 * deviation).all()
    assert (abs(numbers.var(0) - 1) < 5 * np.sqrt(2) * deviation).all()
    assert (abs((numbers**3).mean(0)) < 5 * np.sqrt(15) * deviation).all()
    assert (abs((numbers**4).mean(0) - 3) < 5 * np.sqrt(96) * deviation).all()


@pytest.mark.parametrize("draw", [uniform, normal])
def test_entries_and_neighbouring_keys_are_uncorrelated(draw) -> None:
    numbers = draw(MANY, 3)
    columns = [numbers[:-1, 0], numbers[:-1, 1], numbers[:-1, 2], numbers[1:, 0]]
    correlation = np.corrcoef(np.stack(columns)) - np.eye(4)
    assert abs(correlation).max() < 5 / np.sqrt(len(numbers))


def test_keys_broadcast() -> None:
    assert noise_key(1, np.arange(3), 2).shape == (3,)
    assert noise_key(1).shape == (1,)
    assert noise_key(1, np.arange(3))[2] == noise_key(1, 2)[0]
    assert uniform(noise_key(np.arange(0)), 4).shape == (0, 4)
