"""LIBERO itself, in its own environment."""

import json
import os
import re
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.elsewhere import open_in_a_process
from fake_simulator import one_after_another
from treadle.cores import usable_cores
from treadle.data.observation import Observation
from treadle.environments.environment import find_environment
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import Host
from treadle.workers import queries

pytestmark = pytest.mark.simulator
ROOT = Path(__file__).parents[3]
TARGET = "treadle.simulators.libero:Libero"
TASK = 0
"""Pick up the alphabet soup."""


@pytest.fixture(scope="module")
def interpreter():
    environment = find_environment("libero", TARGET)
    assert environment is not None
    return environment.interpreter()


@pytest.fixture(scope="module")
def simulator(interpreter):
    options = {"horizon": 200, "threads": 1, "tasks": [TASK], "image_size": 96, "render": "fast"}
    with closing(open_in_a_process(SimulatorFactory(TARGET, options, interpreter), 2)) as opened:
        yield opened


def look(simulator) -> Observation:
    seen = simulator.spec.observation(2)
    simulator.observe(np.arange(2), seen)
    return seen


def test_scenarios_start_and_go_on_alike_in_any_slot(simulator):
    first, second = simulator.scenarios("train", "evaluation")[:2]
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 6, 7)).astype(np.float32)
    slots, limits = np.arange(2), np.full(2, 6)
    # Slot 0 plays something else before, and gets its actions apart from slot 1.
    simulator.reset(slots, [second, first])
    simulator.step(slots[:1], actions, limits[:1])
    before = look(simulator)
    assert (before.frames[0] != before.frames[1]).any()
    simulator.reset(slots[:1], [first])
    apart = simulator.step(slots[:1], actions, limits[:1])
    simulator.step(slots[1:], actions[:, :2], limits[1:] - 4)
    rest = simulator.step(slots[1:], actions[:, 2:], limits[1:] - 2)
    np.testing.assert_array_equal(apart.state[0, -1], rest.state[0, -1])
    seen = look(simulator)
    np.testing.assert_array_equal(seen.frames[0], seen.frames[1])
    np.testing.assert_array_equal(seen.proprioception[0], seen.proprioception[1])


def test_frames_show_a_scene_from_above_and_from_the_hand(simulator):
    simulator.reset(np.arange(2), simulator.scenarios("train", "evaluation")[:2])
    seen = look(simulator)
    assert seen.frames[0, 0].std() > 10
    assert seen.frames[0, 1].std() > 10
    # The robot stands in the middle at the top of the agent's view, grey before a brown floor.
    warmth = seen.frames[0, 0, :, 36:60, 0].astype(float) - seen.frames[0, 0, :, 36:60, 2]
    assert warmth[:24].mean() < warmth[-24:].mean() - 10
    assert simulator.spec.cameras == ("agentview", "wrist")


def test_the_fast_profile_draws_nearly_the_same_and_moves_exactly_the_same(simulator, interpreter):
    options = {"horizon": 200, "tasks": [TASK], "image_size": 96, "render": "published"}
    actions = np.random.default_rng(0).uniform(-1, 1, (1, 6, 7)).astype(np.float32)
    frames, states = [], []
    with closing(open_in_a_process(SimulatorFactory(TARGET, options, interpreter), 2)) as published:
        for opened in (simulator, published):
            opened.reset(np.arange(1), opened.scenarios("train", "evaluation")[:1])
            states.append(opened.step(np.arange(1), actions, np.full(1, 6)).state)
            opened.reset(np.arange(2), opened.scenarios("train", "evaluation")[:2])
            frames.append(look(opened).frames.astype(int))
    np.testing.assert_array_equal(*states)
    difference = np.abs(frames[0] - frames[1])
    assert difference.any()
    assert difference[:, 0].mean() < 8


def test_furniture_that_touches_nothing_of_its_own_accord_is_where_it_stands(interpreter):
    """The microwave of suite 10's last task, into which a mug goes."""
    options = {"suite": "10", "tasks": [9], "image_size": 32, "render": "fast"}
    with closing(open_in_a_process(SimulatorFactory(TARGET, options, interpreter), 2)) as opened:
        opened.reset(np.arange(2), opened.scenarios("train", "evaluation")[:2])
        state, other = opened.step(np.arange(2), np.zeros((2, 1, 7), np.float32), np.ones(2, np.intp)).state[:, 0]
    np.testing.assert_array_equal(state[14:17], other[14:17])
    hand, mug, microwave = state[:3], state[8:14], state[14:20]
    for thing in (mug, microwave):
        assert np.abs(thing[:3]).max() < 1.5, "metres"
        np.testing.assert_allclose(thing[3:], thing[:3] - hand, atol=1e-6)
    assert np.linalg.norm(mug[:3] - microwave[:3]) > 0.1


def test_a_bowl_on_a_ramekin_settles_as_it_was_recorded(interpreter):
    """Under MuJoCo from 3.4 on it slides 6.2 cm."""
    options = {"suite": "spatial", "tasks": [5]}
    with closing(open_in_a_process(SimulatorFactory(TARGET, options, interpreter), 1)) as opened:
        assert opened.crew.call(queries.PHYSICS) == "MuJoCo 3.3.7"
        assert re.search(r"\d\.\d.*(Mesa|NVIDIA) \d", opened.crew.call(queries.RENDERER))
        (moved,) = opened.crew.call(queries.SETTLING, opened.scenarios("train", "evaluation")[:1])
    assert moved["akita_black_bowl_1"] == pytest.approx(0.0146, abs=0.001)
    assert max(moved.values()) < 0.02


FREED = """
import gc, weakref
import numpy as np
from treadle.simulators.libero import Libero
gc.disable()
simulator, slot = Libero(1, suite="object", scenes=0), np.arange(1)
first, second = simulator.scenarios("train", "train")[:2]
simulator.reset(slot, [first])
scene = weakref.ref(simulator.at(0)[0])
simulator.reset(slot, [second])
print(scene() is None)
"""


def test_a_scene_that_is_not_kept_gives_its_memory_back(interpreter):
    environment = {**os.environ, **interpreter.variables, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [interpreter.python, "-c", FREED], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "True"


def test_the_expert_solves_its_task(simulator):
    scenarios = simulator.scenarios("train", "train")[:2]
    host = Host(simulator, one_after_another(scenarios), 200)
    host.start()
    expert, results = simulator.expert(0), []
    actions = np.zeros((2, 1, 7), np.float32)
    while len(slots := host.playing):
        actions[slots, 0] = expert.act(slots)
        results += host.step(actions).episodes
    assert [result.success_once for result in results] == [True, True]


def test_furniture_and_the_settling_gripper_are_those_of_a_protocol(interpreter):
    """Of one state under RLinf's way: where the microwave stands, and fingers that nothing has moved."""
    options = {"suite": "10", "tasks": [9], "image_size": 32, "states": "published", "furniture": "indexed"}
    settling = {"settle_steps": 3, "settle_gripper": "still"}
    seen = []
    with closing(open_in_a_process(SimulatorFactory(TARGET, options | settling, interpreter), 2)) as opened:
        opened.reset(np.arange(2), opened.scenarios("train", "evaluation")[:2])
        seen = look(opened)
    np.testing.assert_allclose(np.abs(seen.proprioception[:, 6:]), 0.0208, atol=1e-3)
    assert 1e-3 < np.abs(seen.state[0, 14:16] - seen.state[1, 14:16]).max() < 0.05


def test_the_public_evaluation_loop_sees_and_does_the_same(interpreter, tmp_path):
    """With drawers and a microwave, whose places are drawn in every reset."""
    variables = os.environ | dict(interpreter.variables) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    report = tmp_path / "parity.json"
    command = [interpreter.python, "-m", "benchmarks.check_libero", "parity", "--suite", "10", "--tasks", "9"]
    subprocess.run(
        [*command, "--count", "2", "--horizon", "12", "--json", str(report)], env=variables, check=True, timeout=600
    )
    rows = json.loads(report.read_text())["rows"]
    assert [row["looks"] for row in rows] == [2, 2]
    for row in rows:
        differences = [row[f"{name}_difference"] for name in ("frames", "proprioception", "actions")]
        assert differences == [0, 0, 0]
        assert row["success_at"] == row["success_at_directly"]


@pytest.mark.skipif(len(usable_cores()) < 2, reason="pins simulator and policy to a core each")
def test_lanes_are_measured_with_a_policy_that_fits(tmp_path):
    from benchmarks import collect

    file, small = tmp_path / "collect.json", ["simulator.slots=2", "collection.lanes=2", "decisions=2"]
    collect.run("libero", file, small, size="64x2", seconds=0)
    written = json.loads(file.read_text())
    assert written["policy"] == "openvla_oft 64x2 with random weights"
    assert (written["slots"], written["chunk"], written["kind"]) == (2, 8, "processes")
    assert written["share_of_bound"] > 0
