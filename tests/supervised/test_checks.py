"""Demonstrations that do not fit the simulator or the checkpoint are found out before anything is learned."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import IMAGE, make_demonstrations, make_policy
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import Demonstrations
from treadle.errors import ConfigError
from treadle.policies import load_policy
from treadle.simulators.protocol import ActionDimension, SimulatorSpec, tool_motions
from treadle.supervised.checks import check_policy, check_scaling, check_simulator, choose_cameras
from treadle.supervised.imitation import dataset_statistics

WHERE = Path("D")
ARM = SimulatorSpec("arm", ("front",), IMAGE, IMAGE, tool_motions(metres=1.0), 7, 0, 60, 20.0)
TARGETS = replace(ARM, actions=tuple(ActionDimension(f"a{i}", "absolute") for i in range(7)))


def demonstrations(**changes: np.ndarray) -> Demonstrations:
    """Motions of up to 0.02, of a robot whose statistics are 0.03; a gripper of 0 and 1."""
    return replace(make_demonstrations(), **changes)


def with_dimension(place: int, values: float | np.ndarray) -> Demonstrations:
    found = demonstrations()
    found.actions[:, place] = values
    return found


def test_another_robot_than_the_checkpoints_is_refused_by_both_numbers(tmp_path: Path):
    policy = make_policy(tmp_path)
    check_policy(WHERE, demonstrations(), policy)
    said = r"dataset D has actions of 6 dimensions, the checkpoint's statistics 'tabletop' 7"
    with pytest.raises(ConfigError, match=said):
        check_policy(WHERE, demonstrations(actions=np.zeros((10, 6), np.float32)), policy)
    said = r"dataset D has observation.state of 8 numbers, the checkpoint's statistics 'tabletop' proprioception of 7"
    with pytest.raises(ConfigError, match=said):
        check_policy(WHERE, demonstrations(state=np.zeros((10, 8), np.float32)), policy)


def test_another_robot_than_the_simulators_is_refused_by_both_numbers(tmp_path: Path):
    policy = make_policy(tmp_path)
    check_simulator(WHERE, demonstrations(), ARM, policy)
    with pytest.raises(ConfigError, match=r"dataset D: its actions have 6 dimensions, the simulator's have 7 \(x, y"):
        check_simulator(WHERE, demonstrations(actions=np.zeros((10, 6), np.float32)), ARM, policy)
    other = replace(ARM, proprioception_dim=8)
    for learner in (policy, None):
        with pytest.raises(
            ConfigError, match=r"observation.state of 7 numbers, the simulator 'arm' gives propr.* of 8"
        ):
            check_simulator(WHERE, demonstrations(), other, learner)


def test_proprioception_that_nobody_takes_may_be_anything(tmp_path: Path):
    blind = replace(ARM, proprioception_dim=0)
    check_simulator(WHERE, demonstrations(), blind, None)
    with pytest.raises(ConfigError, match="gives proprioception of 0"):
        check_simulator(WHERE, demonstrations(), blind, make_policy(tmp_path))


@pytest.mark.parametrize("values", [np.tile([-1.0, 1.0], 5), np.linspace(0, 100, 10)])
def test_a_gripper_of_another_range_is_refused(values: np.ndarray):
    said = rf"action dimension 6 \('gripper'\), goes from {values[0]:g} to {values[-1]:g}; .* in \[0, 1\], 1 open"
    with pytest.raises(ConfigError, match=said):
        check_simulator(WHERE, with_dimension(6, values), ARM, None)
    check_simulator(WHERE, with_dimension(6, np.linspace(-0.05, 1.05, 10)), ARM, None)


def test_data_that_fit_the_statistics_pass_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "treadle"):
        check_scaling(WHERE, demonstrations(), make_policy(tmp_path), ARM)
    assert not caplog.records


def test_a_few_clipped_actions_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "treadle"):
        check_scaling(WHERE, with_dimension(1, [0.01] * 8 + [-0.04, 0.05]), make_policy(tmp_path), ARM)
    said = "action dimension 1 'y' goes from -0.04 to 0.05, 20% of it outside -0.03 to 0.03"
    assert said in caplog.text
    assert "the checkpoint's statistics 'tabletop'" in caplog.text
    assert "imitation.statistics=dataset" in caplog.text


def test_other_units_are_refused(tmp_path: Path):
    said = r"statistics 'tabletop', .*action dimension 1 'y' goes from -20 to 20, 100% of it outside -0.03 to 0.03"
    with pytest.raises(ConfigError, match=said):
        check_scaling(WHERE, with_dimension(1, np.linspace(-20, 20, 10)), make_policy(tmp_path), ARM)


def test_a_dimension_that_is_not_scaled_must_have_the_range_of_a_gripper(tmp_path: Path):
    """Tokens reach -1, but the checkpoint has learned 0 for closed."""
    found = with_dimension(6, [-1.0] + [1.0] * 9)
    with pytest.raises(
        ConfigError, match=r"dimension 6 'a6' \(not scaled, as grippers are\) goes from -1 to 1, 10% of"
    ):
        check_scaling(WHERE, found, make_policy(tmp_path), TARGETS)


def test_proprioception_that_is_clipped_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "treadle"):
        check_scaling(WHERE, demonstrations(state=np.full((10, 7), 3, np.float32)), make_policy(tmp_path), ARM)
    assert "observation.state dimension 0 goes from 3 to 3, 100% of it outside -1 to 1" in caplog.text
    assert "and 3 dimensions more" in caplog.text


def test_a_policy_takes_the_statistics_of_the_data_set(tmp_path: Path):
    """q01 and q99 of even numbers from -20 to 20 are -19.6 and 19.6; half of those lie in bins 64 and 192."""
    policy = make_policy(tmp_path / "tokenizer")
    found = demonstrations()
    found = replace(found, actions=np.repeat(np.linspace(-20, 20, 10, dtype=np.float32)[:, None], 7, 1))
    policy.rescale("own", dataset_statistics(found, TARGETS.actions))
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved", device="cpu")
    assert again.scaling is not None
    assert again.scaling.statistics == "own"
    assert again.scaling.action.low == pytest.approx(np.full(7, -19.6))
    tokens = again.targets(torch.tensor([-9.8, 9.8]).repeat_interleave(14).reshape(1, 4, 7))
    assert tokens[0].tolist() == [again.codec.vocabulary - 64] * 14 + [again.codec.vocabulary - 192] * 14
    with pytest.raises(ConfigError, match="actions of 2 dimensions; the policy has 7"):
        policy.rescale("two", {"action": {"mask": [True, True]}})


def recorded(directory: Path, *cameras: str) -> Path:
    size = {"height": 16, "width": 16}
    with DemonstrationWriter(directory, fps=10, cameras=cameras, action_names=["x"], **size) as dataset:
        frames = np.zeros((2, len(cameras), 16, 16, 3), np.uint8)
        dataset.add_episode(frames, np.zeros((2, 0), np.float32), np.zeros((2, 1), np.float32), "go", True, "0")
    return directory


@pytest.mark.parametrize(
    ("there", "seen", "wanted", "chosen"),
    [
        (["top"], ["front"], [], ["top"]),
        (["wrist", "front"], ["front", "wrist"], [], ["front", "wrist"]),
        (["wrist", "front"], ["front"], [], ["front"]),
        (["a", "b"], ["front"], ["b"], ["b"]),
        (["a", "b"], ["front", "wrist"], ["b", "a"], ["b", "a"]),
    ],
)
def test_cameras_are_those_of_the_simulators_names_or_as_wanted(
    tmp_path: Path, there: list[str], seen: list[str], wanted: list[str], chosen: list[str]
):
    spec = replace(ARM, cameras=tuple(seen))
    assert choose_cameras(recorded(tmp_path / "D", *there), spec, wanted) == tuple(chosen)


@pytest.mark.parametrize(
    ("there", "seen", "wanted", "said"),
    [
        (["a", "b"], ["front"], [], r"has the cameras a, b, the simulator 'arm' has front; .* as cameras=\['a'\]"),
        (["a"], ["front", "wrist"], [], r"has the cameras a, the simulator 'arm' has front, wrist"),
        (["a", "b"], ["front", "wrist"], [], r"has the cameras a, b, the simulator 'arm' has front, wrist"),
        (["a", "b"], ["front"], ["a", "b"], r"cameras \['a', 'b'\]: the simulator 'arm' has 1 \(front\)"),
    ],
)
def test_cameras_that_could_be_mistaken_are_refused_by_both_names(
    tmp_path: Path, there: list[str], seen: list[str], wanted: list[str], said: str
):
    with pytest.raises(ConfigError, match=said):
        choose_cameras(recorded(tmp_path / "D", *there), replace(ARM, cameras=tuple(seen)), wanted)
