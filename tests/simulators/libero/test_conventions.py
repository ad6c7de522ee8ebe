import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.simulators.libero.conventions import (
    ACTIONS,
    SENSED,
    as_published,
    rotation_vector,
    settling_action,
    to_control,
)


def test_the_gripper_opens_at_minus_one_and_motions_stay():
    actions = np.zeros((2, 2, 7), np.float32)
    actions[0, 0] = [0.1, -0.2, 0.3, 0.4, -0.5, 0.6, 1.0]
    actions[0, 1, 6], actions[1, 0, 6], actions[1, 1, 6] = 0.0, 0.51, 0.5
    control = to_control(actions)
    np.testing.assert_allclose(control[0, 0], [0.1, -0.2, 0.3, 0.4, -0.5, 0.6, -1.0], rtol=1e-6)
    assert control[0, 1, 6] == 1
    assert control[1, 0, 6] == -1
    assert control[1, 1, 6] == 0
    assert actions[0, 0, 6] == 1, "the caller's actions stay"


def test_rotation_vector_of_a_quarter_turn_about_z():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rotation_vector(np.array([0, 0, half, half])), [0, 0, np.pi / 2], atol=1e-12)


def test_rotation_vector_of_half_a_turn_and_of_none():
    np.testing.assert_allclose(rotation_vector(np.array([1.0, 0, 0, 0])), [np.pi, 0, 0])
    np.testing.assert_array_equal(rotation_vector(np.array([0, 0, 0, 1.0])), np.zeros(3))


@given(st.floats(0.01, 2 * np.pi - 0.01), st.floats(-1, 1), st.floats(0, 2 * np.pi))
def test_rotation_vector_is_angle_times_axis(angle, height, azimuth):
    around = np.sqrt(1 - height**2)
    axis = np.array([around * np.cos(azimuth), around * np.sin(azimuth), height])
    quaternion = np.r_[axis * np.sin(angle / 2), np.cos(angle / 2)]
    np.testing.assert_allclose(rotation_vector(quaternion), angle * axis, atol=1e-6)


def test_pictures_are_turned_by_half_a_turn():
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    turned = as_published(frame)
    assert turned[0, 0].tolist() == frame[1, 2].tolist()
    assert turned[1, 2].tolist() == frame[0, 0].tolist()
    assert pytest.approx(frame) == as_published(turned)


def test_an_action_of_one_asks_for_five_centimetres():
    assert [dimension.metres for dimension in ACTIONS] == [0.05] * 3 + [None] * 4
    assert [dimension.kind for dimension in ACTIONS] == ["relative"] * 6 + ["gripper"]


def test_sensors_look_at_the_same_physics_step_of_every_control_step():
    """robosuite counts the time since its sensors looked in floats, which could drift."""
    since, looked, found = 0.002 + 0.002, True, set()
    for tick in range(25 * 2000):
        since += 0.002
        if not looked and since <= 1.0 / 20:
            found.add(tick % 25 + 1)
            looked = True
        if since >= 1.0 / 20:
            since, looked = since % (1.0 / 20), False
    assert found == {SENSED}


def test_a_scene_settles_with_an_opening_or_a_still_gripper():
    assert settling_action("open").tolist() == [0, 0, 0, 0, 0, 0, -1]
    assert settling_action("still").tolist() == [0] * 7
