"""Tasks and scenarios, without ManiSkill."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.maniskill import ManiSkill
from treadle.simulators.maniskill.built_in import BUILT_IN
from treadle.simulators.maniskill.task import to_controller


@dataclass
class Moment:
    score: np.ndarray
    success: np.ndarray
    state: np.ndarray


def test_building_one_loads_nothing_of_maniskill_nor_torch():
    code = (
        "import sys; from treadle.simulators.maniskill import ManiSkill; s = ManiSkill(4, task='PutOnPlateInScene25');"
        "s.scenarios('train', 'train')[7];"
        "print([m for m in ('torch', 'mani_skill', 'sapien', 'pydantic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_actions_become_the_controllers():
    actions = np.array([[0.05, -0.1, 0.02, 0.1, 0, -0.05, 0.6], [0, 0, 0, 0, 0, 0, 0.5]], np.float32)
    expected = [[0.5, -1, 0.2, -1, 0, 0.5, 1], [0, 0, 0, 0, 0, 0, -1]]
    assert np.allclose(to_controller(actions, (0.1, -0.1)), expected)
    assert np.allclose(to_controller(actions, (1, 1))[:, :6], actions[:, :6])


@pytest.mark.parametrize("name", BUILT_IN)
def test_seeds_of_the_splits_are_disjoint(name):
    task = BUILT_IN[name]
    seeds = {
        split: {task.start(scenario)[0] for scenario in task.scenarios("train", split)[:50]}
        for split in ("train", "evaluation")
    }
    assert len(seeds["train"]) == len(seeds["evaluation"]) == 50
    assert not seeds["train"] & seeds["evaluation"]


def test_what_cannot_be_is_named():
    with pytest.raises(ConfigError, match=r"PickCube-v2.*PickCube-v1"):
        ManiSkill(1, task="PickCube-v2")
    with pytest.raises(ConfigError, match=r"reward.*shaped, sparse, dense"):
        ManiSkill(1, reward="much")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"render.*'quick'.*published, fast"):
        ManiSkill(1, render="quick")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"render.*'fast' with device 'cuda'"):
        ManiSkill(1, render="fast", device="cuda")
    with pytest.raises(ConfigError, match=r"only PutOnPlateInScene25 has assets"):
        ManiSkill(1, assets="somewhere")
    for option, value in {"episodes": "drawn", "drops": "rlinf"}.items():
        with pytest.raises(ConfigError, match=rf"options.{option}: found '{value}'.*only PutOnPlateInScene25"):
            ManiSkill(1, **{option: value})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=rf"options.{option}: found 'all'; choose from"):
            ManiSkill(1, task="PutOnPlateInScene25", **{option: "all"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"after_success: found 'stop'; choose from end, continue"):
        ManiSkill(1, after_success="stop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"image_size: found 'camera' with task PickCube-v1"):
        ManiSkill(1, image_size="camera")
    with pytest.raises(ConfigError, match=r"image_size: found 'full'; choose from camera"):
        ManiSkill(1, task="PutOnPlateInScene25", image_size="full")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"no suite 'vision'; choose from train"):
        ManiSkill(1).scenarios("vision", "train")
    with pytest.raises(ConfigError, match=r"no split"):
        ManiSkill(1).scenarios("train", "test")  # type: ignore[arg-type]
    with pytest.raises(SimulatorError, match=r"never reset"):
        ManiSkill(1).step(np.arange(1), np.zeros((1, 1, 7), np.float32), np.ones(1, np.intp))
    other = ManiSkill(1, task="StackCube-v1").scenarios("train", "train")[0]
    with pytest.raises(SimulatorError, match=r"PickCube-v1 here.*StackCube-v1"):
        ManiSkill(1).reset(np.arange(1), [other])
    with pytest.raises(SimulatorError, match=r"no scripted expert of PokeCube-v1"):
        ManiSkill(1, task="PokeCube-v1").expert(0)


def test_frames_may_be_as_large_as_the_camera_draws_them():
    spec = ManiSkill(1, task="PutOnPlateInScene25", image_size="camera").spec
    assert (spec.height, spec.width) == (480, 640)
    assert ManiSkill(1, image_size=96).spec.width == 96


def test_success_ends_an_episode_or_not(monkeypatch):
    """An engine of one row, whose goal holds at the second of four steps and no more at the fourth."""

    class Stub:
        holds = iter([False, True, True, False] * 2)

        def step(self, rows, actions):
            success = np.array([next(self.holds)])
            return Moment(success.astype(np.float32), success, np.zeros((1, 42), np.float32))

    found = []
    for after in ("end", "continue"):
        simulator = ManiSkill(1, after_success=after)
        Stub.holds = iter([False, True, True, False])
        monkeypatch.setattr(simulator, "engine", lambda slot: (Stub(), 0))
        simulator._played = simulator.scenarios("train", "train")[:1]
        outcome = simulator.step(np.arange(1), np.zeros((1, 4, 7), np.float32), np.full(1, 4))
        found.append((outcome.success[0].tolist(), outcome.terminated[0].tolist()))
    assert found[0] == ([False, True, False, False], [False, True, False, False]), "what follows is not played"
    assert found[1] == ([False, True, True, False], [False] * 4)
