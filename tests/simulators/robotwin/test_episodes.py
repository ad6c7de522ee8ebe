"""RoboTwin itself, in its own environment and on the generated assets."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import treadle
from benchmarks.elsewhere import INVOKE, Elsewhere, open_simulator
from fake_simulator import one_after_another
from treadle.config.schema import SimulatorConfig
from treadle.data.scenario import Scenario
from treadle.environments.interpreter import Interpreter
from treadle.simulators.build import simulator_environment
from treadle.simulators.host import Host
from treadle.simulators.protocol import Simulator

pytestmark = pytest.mark.simulator

# Moves the hammer's head onto the block, which no script of joint targets here can do, and plays on.
SOLVE = """
import numpy as np, sapien
from treadle.simulators.robotwin import RoboTwin

simulator, slot = RoboTwin(1, cameras=["head_camera"]), np.array([0])
simulator.reset(slot, simulator.scenarios("train", "train")[:1])
scene = simulator._scenes[0]
actions = np.repeat(scene.joints()[None, None], 3, 1).astype(np.float32)
assert not simulator.step(slot, actions, np.array([3])).success.any()
hammer, block = scene._task.hammer, scene._task.block
shift = block.get_functional_point(1, "pose").p - hammer.get_functional_point(0, "pose").p
pose = hammer.actor.get_pose()
hammer.actor.set_pose(sapien.Pose(pose.p + shift + [0, 0, 0.002], pose.q))
outcome = simulator.step(slot, actions, np.array([3]))
print(outcome.reward.tolist(), outcome.terminated.tolist(), outcome.success.tolist())
simulator.close()
"""


@pytest.fixture(scope="module")
def interpreter() -> Interpreter:
    environment = simulator_environment("robotwin")
    assert environment is not None
    return environment.interpreter()


@pytest.fixture(scope="module")
def simulator(interpreter: Interpreter):
    options = {"cameras": ["head_camera", "right_camera"]}
    made = open_simulator(SimulatorConfig(name="robotwin", slots=2, horizon=12, options=options))
    yield made
    made.close()


def play(simulator: Simulator, scenarios: list[Scenario], chunk: int) -> tuple[np.ndarray, ...]:
    """First and last frames, and proprioception, of two slots that move their left arms for 12 steps."""
    host = Host(simulator, one_after_another(scenarios), 12, keep_final="ended")
    first = host.start()
    frames, start = first.frames.copy(), first.proprioception.copy()
    actions = np.repeat(start[:, None], 12, 1)
    actions[:, :, 0] += np.linspace(0.05, 0.6, 12)
    actions[:, :, 6] = 0
    for c in range(0, 12, chunk):
        step = host.step(actions[:, c : c + chunk])
    assert [result.length for result in step.episodes] == [12, 12]
    assert not any(result.success_once for result in step.episodes)
    return frames, step.final.frames, start, step.final.proprioception, actions[:, -1]


def red(frame: np.ndarray) -> np.ndarray:
    """Rows and columns [n, 2] of the block."""
    values = frame.astype(int)
    return np.argwhere((values[..., 0] > 150) & (values[..., 1] < 60) & (values[..., 2] < 60))


def test_episodes_are_played_and_seen(simulator):
    scenarios = simulator.scenarios("train", "train")[:2]
    frames, last, start, end, asked = play(simulator, list(scenarios), 4)
    assert frames.shape == (2, 2, 240, 320, 3)
    assert start[:, [6, 13]].tolist() == [[1, 1], [1, 1]]
    assert np.abs(end - asked).max() < 1e-2
    blocks = [red(frame) for frame in frames[:, 0]]
    assert all(len(pixels) > 50 for pixels in blocks)
    assert np.abs(blocks[0].mean(0) - blocks[1].mean(0)).max() > 5
    # Upright: the wall behind the table is above it, and the arms reach in from below.
    assert frames[0, 0, 5].std(axis=0).max() < 10 < frames[0, 0, -5].std(axis=0).max()
    assert np.mean(frames[:, 0] != last[:, 0]) > 0.01


def test_a_scenario_is_the_same_in_any_slot_and_chunk(simulator):
    scenario = simulator.scenarios("train", "train")[3]
    first = play(simulator, [scenario, scenario], 12)
    for one, other in zip(first, play(simulator, [scenario, scenario], 3), strict=True):
        assert np.array_equal(one[0], one[1])
        assert np.array_equal(one, other)


def worded(simulator: Simulator, slot: int) -> str:
    assert isinstance(simulator, Elsewhere)
    return simulator.crew.call(INVOKE, "wording", slot)


def test_a_scene_names_the_arm_on_the_side_of_its_block(simulator):
    slots, seen, named = np.arange(2), simulator.spec.observation(2), []
    scenarios = simulator.scenarios("train", "train")
    for first in range(0, 8, 2):
        simulator.reset(slots, scenarios[first : first + 2])
        simulator.observe(slots, seen)
        for slot in range(2):
            arm = re.search("the (left|right) arm", worded(simulator, slot))
            named += [(arm[1], red(seen.frames[slot, 0])[:, 1].mean() < 160)] if arm else []
    assert {arm for arm, _ in named} == {"left", "right"}
    assert all((arm == "left") == on_the_left for arm, on_the_left in named)


def test_success_ends_an_episode_with_its_reward(interpreter):
    done = subprocess.run(
        [interpreter.python, "-c", SOLVE],
        env={**os.environ, **interpreter.variables, "PYTHONPATH": str(Path(treadle.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reward, terminated, success = ("[[5.0, 0.0, 0.0]]", *["[[True, False, False]]"] * 2)
    assert done.stdout.splitlines()[-1] == f"{reward} {terminated} {success}"


# Blocks alone, then a box and a pot of several links.
FAST = ("handover_block", "stack_blocks_two", "move_can_pot")
SLOW = ("pick_dual_bottles", "place_container_plate", "place_empty_cup", "lift_pot")


@pytest.mark.parametrize("tasks", [FAST, pytest.param(SLOW, marks=pytest.mark.full)])
def test_published_tasks_play_on_miniature_assets(interpreter, tasks):
    options = {"tasks": tasks, "cameras": ["head_camera"], "path_actions": 4}
    made = open_simulator(SimulatorConfig(name="robotwin", slots=1, horizon=12, options=options))
    slot, seen = np.arange(1), made.spec.observation(1)
    try:
        for scenario in made.scenarios("train", "train")[: len(tasks)]:
            made.reset(slot, [scenario])
            made.observe(slot, seen)
            assert "{" not in worded(made, 0)
            if "block" in scenario.task:
                assert len(red(seen.frames[0, 0])) > 10
            actions = np.repeat(seen.proprioception[:, None], 4, 1)
            actions[:, :, 0] += np.linspace(0.05, 0.2, 4)
            assert not made.step(slot, actions, np.array([4])).success.any()
            made.observe(slot, seen)
            np.testing.assert_allclose(seen.proprioception[0, 0], actions[0, -1, 0], atol=0.02)
    finally:
        made.close()
