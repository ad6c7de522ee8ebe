"""ManiSkill itself, in its own environment and through worker processes, as users have it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.elsewhere import open_simulator
from treadle.config.schema import SimulatorConfig
from treadle.simulators.build import simulator_environment
from treadle.simulators.maniskill.put_on_plate.settings import SETTINGS
from treadle.workers import queries

pytestmark = pytest.mark.simulator

SOURCE = Path(__file__).parents[3] / "src"
STEPS = 6


@pytest.fixture(scope="module")
def interpreter():
    environment = simulator_environment("maniskill")
    assert environment is not None
    return environment.interpreter()


@pytest.fixture(scope="module")
def pick_cube(interpreter):
    simulator = open_simulator(SimulatorConfig(name="maniskill", slots=2, horizon=50, options={"reward": "dense"}))
    yield simulator
    simulator.close()


def empty(simulator):
    return simulator.spec.observation(simulator.slots)


def random_actions(count=1):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.05, 0.05, (count, STEPS, 7)).astype(np.float32)
    actions[..., 6] = rng.random((count, STEPS))
    return actions


# Runs in ManiSkill's interpreter, where nothing of Treadle is loaded.
DIRECT = """
import sys
import gymnasium, mani_skill.envs, numpy as np
actions = np.load(sys.argv[1])
env = gymnasium.make("PickCube-v1", obs_mode="rgb", reward_mode="normalized_dense", control_mode="pd_ee_delta_pose",
                     sim_backend="physx_cpu", render_backend="cpu", sensor_configs=dict(width=128, height=128))
for goal in env.unwrapped._hidden_objects:
    goal.show_visual()
env.unwrapped._hidden_objects.clear()
seen, _ = env.reset(seed=1)
frames, rewards, success = [seen["sensor_data"]["base_camera"]["rgb"][0].numpy()], [], []
for action in actions:
    command = np.concatenate([action[:3] / 0.1, action[3:6] / -0.1, [1.0 if action[6] > 0.5 else -1.0]])
    seen, reward, _, _, info = env.step(command.astype(np.float32))
    rewards.append(float(reward))
    success.append(bool(info["success"]))
frames.append(seen["sensor_data"]["base_camera"]["rgb"][0].numpy())
np.savez(sys.argv[2], frames=frames, rewards=rewards, success=success)
"""


def test_parity_with_maniskill_called_directly(interpreter, pick_cube, tmp_path):
    actions = random_actions()
    np.save(tmp_path / "actions.npy", actions[0])
    subprocess.run(
        [interpreter.python, "-c", DIRECT, tmp_path / "actions.npy", tmp_path / "direct.npz"],
        env={**os.environ, **interpreter.variables},
        check=True,
        capture_output=True,
    )
    direct = np.load(tmp_path / "direct.npz")
    slot, seen = np.arange(1), empty(pick_cube)
    pick_cube.reset(slot, pick_cube.scenarios("train", "evaluation")[:1])
    pick_cube.observe(slot, seen)
    first = seen.frames[0, 0].copy()
    outcome = pick_cube.step(slot, actions, np.array([STEPS]))
    pick_cube.observe(slot, seen)
    assert np.array_equal(first, direct["frames"][0])
    assert np.array_equal(seen.frames[0, 0], direct["frames"][1])
    assert np.allclose(outcome.reward[0], direct["rewards"], atol=1e-6)
    assert outcome.success[0].tolist() == direct["success"].tolist()


def test_the_driver_is_named(pick_cube):
    assert re.match(r"Vulkan: .+, .*\d+\.\d+", pick_cube.crew.call(queries.RENDERER))


def test_a_scenario_is_the_same_in_any_slot_and_after_others(pick_cube):
    slots, seen = np.arange(2), empty(pick_cube)
    one, other = pick_cube.scenarios("train", "train")[:2]
    pick_cube.reset(slots, [one, other])
    pick_cube.observe(slots, seen)
    frames = seen.frames.copy()
    assert (frames[0] != frames[1]).any()
    pick_cube.step(slots, random_actions(2), np.full(2, STEPS))
    pick_cube.reset(slots, [other, one])
    pick_cube.observe(slots, seen)
    assert np.array_equal(seen.frames, frames[::-1])


def test_the_fast_profile_draws_nearly_the_same_and_moves_exactly_the_same(pick_cube):
    options = {"reward": "dense", "render": "fast"}
    fast = open_simulator(SimulatorConfig(name="maniskill", slots=1, horizon=50, options=options))
    slot, frames, outcomes = np.arange(1), [], []
    try:
        for simulator in (pick_cube, fast):
            seen = empty(simulator)
            simulator.reset(slot, simulator.scenarios("train", "train")[:1])
            outcomes.append(simulator.step(slot, random_actions(), np.array([STEPS])))
            simulator.observe(slot, seen)
            frames.append(seen.frames[0, 0].astype(int))
    finally:
        fast.close()
    assert np.array_equal(outcomes[0].reward, outcomes[1].reward)
    assert np.array_equal(outcomes[0].state, outcomes[1].state)
    difference = np.abs(frames[0] - frames[1])
    assert difference.any()
    assert difference.mean() < 2
    assert (difference.max(-1) > 40).mean() < 0.02


@pytest.mark.parametrize("task", ["PickCube-v1", "PushCube-v1", "StackCube-v1"])
def test_experts_solve_their_tasks(interpreter, task):
    """Without frames, which are what takes time."""
    code = f"""
import numpy as np
from treadle.simulators.host import Host
from treadle.simulators.maniskill import ManiSkill
simulator = ManiSkill(1, horizon=80, task={task!r})
simulator.observe = lambda slots, out: None
left = iter(simulator.scenarios("train", "train")[:3])
host = Host(simulator, lambda slot: next(left, None), 80)
expert = simulator.expert(0)
host.start()
solved = []
while len(host.playing):
    solved += [episode.success_once for episode in host.step(expert.act(np.arange(1))[:, None]).episodes]
print(sum(solved))
"""
    done = subprocess.run(
        [interpreter.python, "-c", code],
        env={**os.environ, **interpreter.variables, "PYTHONPATH": str(SOURCE)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-1] == "3"


def test_frames_are_the_cameras_own_and_only_meshes_of_an_arm_shine(interpreter):
    """As published: `set_articulation_render_material` passes over other shapes, which are all that this arm has."""
    code = """
import numpy as np
from sapien.render import RenderShapeTriangleMesh
from treadle.simulators.maniskill import ManiSkill
simulator = ManiSkill(1, task="PutOnPlateInScene25", image_size="camera", drops="rlinf", episodes="drawn")
simulator.reset(np.arange(1), simulator.scenarios("train", "train")[:1])
seen = simulator.spec.observation(1)
simulator.observe(np.arange(1), seen)
environment = simulator.engine(0)[0].environment
materials = [
    (isinstance(shape, RenderShapeTriangleMesh), round(part.material.specular, 3), round(part.material.roughness, 3))
    for link in environment.agent.robot._objs[0].links
    for component in link.entity.components if hasattr(component, "render_shapes")
    for shape in component.render_shapes
    for part in shape.parts
]
up = environment.plates[0].pose.to_transformation_matrix()[0, 2, 2]
print(seen.frames.shape, seen.frames.std() > 10, sorted(set(materials)), float(up) > 0.99)
"""
    done = subprocess.run(
        [interpreter.python, "-c", code],
        env={**os.environ, **interpreter.variables, "PYTHONPATH": str(SOURCE)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "(1, 1, 480, 640, 3) True [(False, 0.0, 1.0)] True"


def test_a_thing_of_several_pieces_comes_to_rest_alike_after_any_episodes(interpreter, tmp_path):
    """PhysX lists its contacts by what touched what in the scene before."""
    code = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from treadle.simulators.maniskill import ManiSkill
corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) - 0.5
faces = "123 243 576 678 152 256 374 478 135 537 264 468".split()
lines = []
for piece, turn in enumerate(np.linspace(-1, 1, 5)):
    lines.append(f"o piece{piece}")
    for x, y, z in corners * [0.025, 0.02, 0.02]:
        place = np.cos(turn) * x - np.sin(turn) * (y - 0.06), np.sin(turn) * x + np.cos(turn) * (y - 0.06), z
        lines.append("v {} {} {}".format(*place))
    lines += ["f {} {} {}".format(*(int(corner) + 8 * piece for corner in face)) for face in faces]
file = Path(sys.argv[1])
file.write_text("\\n".join(lines))
simulator = ManiSkill(1, task="PutOnPlateInScene25")
made = simulator.task._assets
things = tuple(replace(thing, collision=file, scale=1.0) for thing in made.objects)
simulator.task.__dict__["_assets"] = replace(made, objects=things)
scenarios, starts = simulator.scenarios("train", "train"), {}
for index in (0, 1, 2, 3, 2, 1, 0):
    simulator.reset(np.arange(1), [scenarios[index]])
    starts.setdefault(index, []).append(simulator._state[0].copy())
print([len(np.unique(rows, axis=0)) for rows in starts.values()])
"""
    done = subprocess.run(
        [interpreter.python, "-c", code, tmp_path / "pieces.obj"],
        env={**os.environ, **interpreter.variables, "PYTHONPATH": str(SOURCE)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[1, 1, 1, 1]"


def test_every_setting_starts_steps_and_differs(interpreter):
    simulator = open_simulator(
        SimulatorConfig(
            name="maniskill", slots=1, horizon=80, options={"task": "PutOnPlateInScene25", "image_size": 64}
        )
    )
    slot, seen = np.arange(1), empty(simulator)
    frames, after = {}, {}
    try:
        for suite in SETTINGS:
            scenario = simulator.scenarios(suite, "evaluation")[0]
            simulator.reset(slot, [scenario])
            simulator.observe(slot, seen)
            frames[suite] = seen.frames[0, 0].copy()
            still = np.tile(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), (1, STEPS, 1))
            outcome = simulator.step(slot, still, np.array([STEPS]))
            assert not outcome.success.any()
            assert not outcome.reward.any(), "nothing was grasped"
            simulator.observe(slot, seen)
            after[suite] = np.abs(seen.frames[0, 0].astype(int) - frames[suite]).mean()
    finally:
        simulator.close()
    assert all(frame.std() > 10 for frame in frames.values())
    pictured = [name for name in SETTINGS if name not in ("train", "semantic/object-seen", "semantic/wording")]
    for name in pictured:
        assert np.abs(frames[name].astype(int) - frames["train"]).mean() > 1, name
    # The scene of these is training's; what is asked, or that the object will move, is not.
    assert np.array_equal(frames["semantic/object-seen"], frames["train"])
    assert after["execution/moved"] > 5 * after["train"]


def test_recorded_rates_need_no_gpu(interpreter, tmp_path):
    """The script for a GPU, on its CPU path."""
    words = ["--device", "cpu", "--simulators", "maniskill", "--slots", "1", "2", "--chunks", "1"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_simulators", *words, "--json", tmp_path / "out.json"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        cwd=SOURCE.parent,
        check=True,
    )
    assert '"slots": 2' in (tmp_path / "out.json").read_text()
