"""The experts' decisions in situations by hand; that they solve the tasks is tested with ManiSkill."""

import numpy as np

from treadle.simulators.maniskill.expert import APPROACH, CARRY, CLOSE, DESCEND, RELEASE, SKILLS, Sight, decide

PICK, STACK, PUSH = (SKILLS[f"{name}-v1"] for name in ("PickCube", "StackCube", "PushCube"))


def sight(tool, thing=(0, 0, 0.02), goal=(0.1, 0, 0.2), held=False, tool_yaw=0.0, thing_yaw=0.0):
    return Sight(np.array(tool, float), tool_yaw, np.array(thing, float), thing_yaw, np.array(goal, float), held)


def test_it_comes_from_above_no_faster_than_it_may():
    phase, action = decide(sight([0.3, 0, 0.1]), APPROACH, 0, PICK)
    assert phase == APPROACH
    assert np.allclose(action, [-0.05, 0, 0, 0, 0, 0, 1])


def test_it_turns_the_short_way_to_a_face_of_the_cube():
    _, action = decide(sight([0, 0, 0.1], thing_yaw=np.deg2rad(85)), APPROACH, 0, PICK)
    assert np.isclose(action[5], -np.deg2rad(5))


def test_the_order_of_a_grasp():
    assert decide(sight([0, 0, 0.1]), APPROACH, 0, PICK)[0] == DESCEND
    phase, action = decide(sight([0, 0, 0.021]), DESCEND, 0, PICK)
    assert (phase, action[6]) == (CLOSE, 0)
    assert decide(sight([0, 0, 0.021]), CLOSE, 0, PICK)[0] == CLOSE
    assert decide(sight([0, 0, 0.021], held=True), CLOSE, 2, PICK)[0] == CARRY
    assert decide(sight([0, 0, 0.021]), CLOSE, 2, PICK)[0] == APPROACH, "a grasp that failed is tried again"
    assert decide(sight([0, 0, 0.1]), CARRY, 5, PICK)[0] == APPROACH, "so is one that slipped"


def test_stacking_rises_then_crosses_then_lowers_and_lets_go():
    goal = (0.1, 0, 0.06)
    _, up = decide(sight([0, 0, 0.02], goal=goal, held=True), CARRY, 0, STACK)
    assert up[2] > 0.04
    assert abs(up[0]) < 1e-6
    _, across = decide(sight([0, 0, 0.1], thing=(0, 0, 0.1), goal=goal, held=True), CARRY, 0, STACK)
    assert across[0] > 0.04
    _, down = decide(sight([0.1, 0, 0.1], thing=(0.1, 0, 0.1), goal=goal, held=True), CARRY, 0, STACK)
    assert down[2] < -0.03
    phase, action = decide(sight([0.1, 0, 0.06], thing=(0.1, 0, 0.061), goal=goal, held=True), CARRY, 0, STACK)
    assert (phase, action[6]) == (RELEASE, 1)


def test_pushing_starts_behind():
    goal = (0.2, 0, 0)
    phase, action = decide(sight([-0.06, 0, 0.1], goal=goal), APPROACH, 0, PUSH)
    assert (phase, action[6]) == (DESCEND, 0)
    assert action[2] < 0
    phase, action = decide(sight([-0.06, 0, 0.025], goal=goal), DESCEND, 0, PUSH)
    assert phase == CARRY
    assert action[0] > 0.04
