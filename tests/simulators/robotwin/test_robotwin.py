"""RoboTwin's scenarios and options, without RoboTwin."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from treadle.data.scenario import Scenario
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.robotwin import RoboTwin
from treadle.simulators.robotwin.seeds import COUNTED, read_seeds


@pytest.fixture
def simulator(package):
    made = RoboTwin(2)
    yield made
    made.close()


def seeds_file(folder: Path, seeds: dict[str, list[int]]) -> str:
    path = folder / "seeds.json"
    path.write_text(json.dumps({task: {"success_seeds": listed} for task, listed in seeds.items()}))
    return str(path)


def test_it_is_made_without_its_packages(simulator):
    assert not {"sapien", "robotwin"} & sys.modules.keys()
    spec = simulator.spec
    assert (spec.height, spec.width, spec.action_dim, spec.proprioception_dim) == (240, 320, 14, 14)
    grippers = {i: dimension.name for i, dimension in enumerate(spec.actions) if dimension.kind == "gripper"}
    assert grippers == {6: "left_gripper", 13: "right_gripper"}
    assert {dimension.kind for dimension in spec.actions} == {"absolute", "gripper"}
    assert spec.cameras == ("head_camera", "left_camera", "right_camera")
    assert simulator.suites() == ("train", "semantic/instruction")


def test_scenarios_are_seeds(simulator, package):
    training, evaluation = (simulator.scenarios("train", split) for split in ("train", "evaluation"))
    assert len(training) == len(evaluation) == len(COUNTED["train"])
    assert not set(COUNTED["train"]) & set(COUNTED["evaluation"])
    assert training[7] == RoboTwin(1).scenarios("train", "train")[7]
    # Scenes word their instructions once they stand.
    assert training[7].instruction == "use the arm to grab the hammer and beat the block"
    assert simulator.instructions(training[7]) == [training[7].instruction]


def test_seeds_of_a_file_and_tasks_in_turn(package, tmp_path, monkeypatch):
    monkeypatch.setattr("treadle.simulators.robotwin.simulator.check_assets", lambda *_, **__: None)
    file = seeds_file(tmp_path, {"beat_block_hammer": [5, 9, 5], "pick_dual_bottles": [1, 2, 3]})
    made = RoboTwin(
        1, tasks=["beat_block_hammer", "pick_dual_bottles"], assets=str(tmp_path), train_seeds=file,
        variation="randomized",
    )  # fmt: skip
    scenarios = made.scenarios("train", "train")
    assert [scenario.task for scenario in scenarios] == ["beat_block_hammer", "pick_dual_bottles"] * 2
    assert scenarios[1].instruction == "pick up two bottles"
    assert made.suites() == ("train", "semantic/instruction")
    built = []
    monkeypatch.setattr(made._workshop, "build", lambda scenario, *how, **options: built.append((how, options)))
    made.reset(np.zeros(4, np.intp), scenarios[:])
    made.reset(np.zeros(1, np.intp), made.scenarios("semantic/instruction", "train")[1:2])
    ways = [(5, "seen"), (1, "seen"), (9, "seen"), (2, "seen"), (1, "unseen")]
    assert built == [(how, {"randomized": True}) for how in ways]


def test_a_file_without_the_task(tmp_path):
    file = seeds_file(tmp_path, {"lift_pot": [1], "shake_bottle": []})
    assert read_seeds("train", file, ["lift_pot"]) == {"lift_pot": [1]}
    for task in ("move_can_pot", "shake_bottle"):
        with pytest.raises(ConfigError, match=rf"train_seeds: .*{task}.*it holds: lift_pot, shake_bottle"):
            read_seeds("train", file, [task])
    with pytest.raises(ConfigError, match=r"evaluation_seeds: .*nowhere.json"):
        read_seeds("evaluation", str(tmp_path / "nowhere.json"), ["lift_pot"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": "beat_the_block"}, "options.tasks: found 'beat_the_block'; choose from adjust_bottle, "),
        ({"tasks": []}, "options.tasks: found 'none'; choose from adjust_bottle"),
        ({"cameras": ["front"]}, "options.cameras: found 'front'; choose from head_camera, left_camera, right_camera"),
        ({"variation": "wild"}, "choose from clean, randomized"),
        ({"path_actions": 0}, "options.path_actions: found 0; it is 1 or more"),
        ({"shader": "raster"}, "choose from auto, rt, default"),
        ({"embodiment": ["piper", "piper"]}, "two arms' and their distance"),
        (
            {"tasks": "open_laptop"},
            "not enough for tasks ['open_laptop'], only for beat_block_hammer, handover_block, ",
        ),
        ({"variation": "randomized"}, "not enough for variation 'randomized'"),
        ({"embodiment": ["aloha-agilex"]}, "not enough for arms ['aloha-agilex']"),
    ],
)
def test_options_that_do_not_fit(package, options, said):
    with pytest.raises(ConfigError) as caught:
        RoboTwin(1, **options)
    assert said in str(caught.value)


def test_missing_assets_are_an_error_before_anything_starts(package, tmp_path):
    with pytest.raises(ConfigError, match=r"embodiments/piper/config.yml\n .*curobo_left_tmp.yml"):
        RoboTwin(1, assets=str(tmp_path / "nothing"))


def test_what_cannot_be_played(simulator):
    with pytest.raises(ConfigError, match="no suite 'vision/randomized'; choose from train"):
        simulator.scenarios("vision/randomized", "evaluation")
    with pytest.raises(SimulatorError, match="cannot play scenario tabletop/train/train/000003"):
        simulator.reset(np.zeros(1, np.intp), [Scenario("tabletop", "train", "x", "train", 3, "go")])
    with pytest.raises(SimulatorError, match="slot 1 was never reset"):
        simulator.step(np.ones(1, np.intp), np.zeros((1, 1, 14), np.float32), np.ones(1, np.intp))


class Motions:
    """A scene that is solved in its second motion."""

    def __init__(self):
        self.played = []

    def play(self, actions):
        self.played.append(actions[:, 0].tolist())
        return len(self.played) == 2

    def close(self):
        pass


@pytest.mark.parametrize(
    ("together", "played", "solved_at"),
    [(1, [[0], [1]], 1), (2, [[0, 1], [2, 3]], 3), (3, [[0, 1, 2], [3, 4]], 4)],
)
def test_actions_are_played_one_by_one_or_as_one_motion(package, together, played, solved_at):
    made = RoboTwin(1, path_actions=together)
    assert made.spec.actions_together == together
    made._scenes = [Motions()]
    actions = np.zeros((1, 6, 14), np.float32)
    actions[0, :, 0] = range(6)
    outcome = made.step(np.arange(1), actions, np.array([5]))
    assert made._scenes[0].played == played
    assert outcome.success[0].tolist() == [place == solved_at for place in range(6)]
    assert outcome.terminated.tolist() == outcome.success.tolist()
    assert outcome.reward[0, solved_at] == 5
    made.close()
