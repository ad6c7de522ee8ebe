import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.simulators.libero.shapes import corners, extent, half_turn, narrowest


def test_a_long_box_is_narrow_across():
    points = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [0.0, 1.0]])
    width, direction = narrowest(points)
    assert width == pytest.approx(1)
    np.testing.assert_allclose(np.abs(direction), [0, 1], atol=1e-12)


@given(st.integers(0, 35))
def test_a_turned_box_is_narrow_along_its_turned_side(steps):
    angle = steps * np.pi / 36
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0], [0.0, 1.0]]) @ turn.T
    width, direction = narrowest(points)
    assert width == pytest.approx(1)
    assert abs(direction @ turn[:, 1]) == pytest.approx(1)


def test_corners_of_a_shifted_and_turned_box():
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    found = corners(np.array([[10.0, 0, 0]]), quarter[None], np.array([[0, 0, 1, 2, 1, 0.5]]))
    assert found.shape == (8, 3)
    np.testing.assert_allclose(found.min(0), [9, -2, 0.5])
    np.testing.assert_allclose(found.max(0), [11, 2, 1.5])


def test_extent_holds_middle_and_height():
    box = extent(corners(np.zeros((1, 3)), np.eye(3)[None], np.array([[0, 0, 0.5, 0.1, 0.2, 0.25]])))
    np.testing.assert_allclose(box.centre, [0, 0, 0.5])
    assert (box.bottom, box.top, box.width) == pytest.approx((0.25, 0.75, 0.2))
    np.testing.assert_allclose(np.abs(box.narrow), [1, 0], atol=1e-12)


@given(st.floats(-20, 20))
def test_half_turns_are_lines(angle):
    assert -np.pi / 2 <= half_turn(angle) < np.pi / 2
    assert np.tan(half_turn(angle) - angle) == pytest.approx(0, abs=1e-6)
