"""What is learned of demonstrations: chunks, the entries that count, and statistics."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import TWO_ARMS, make_demonstrations, make_policy
from treadle.config.supervised import ImitationConfig
from treadle.errors import ConfigError
from treadle.simulators.protocol import ActionDimension, tool_motions
from treadle.supervised.chunks import Chunks
from treadle.supervised.imitation import dataset_statistics, imitate

PUSH = (ActionDimension("push", "relative"), ActionDimension("grip", "gripper"))
"""A motion and a gripper."""
MOTIONS = tool_motions(metres=1.0)


def cut(
    actions: np.ndarray, episode: list[int], size: int, dimensions: tuple[ActionDimension, ...], **settings
) -> tuple[np.ndarray, np.ndarray]:
    """All chunks of some actions, and which of their actions count."""
    found = replace(
        make_demonstrations(), actions=actions, episode_index=np.array(episode), state=settings.pop("state", actions)
    )
    return Chunks.of(found, size, dimensions, **settings).take(np.arange(len(actions)))


def test_chunks_end_with_their_episode_standing_still_with_the_gripper_as_it_was():
    actions = np.array([[1, 0], [2, 1], [3, 0], [4, 1], [5, 1]], np.float32)
    chunks, counted = cut(actions, [0, 0, 0, 1, 1], 3, PUSH)
    assert counted.all()
    assert chunks.tolist() == [
        [[1, 0], [2, 1], [3, 0]],
        [[2, 1], [3, 0], [0, 0]],
        [[3, 0], [0, 0], [0, 0]],
        [[4, 1], [5, 1], [0, 1]],
        [[5, 1], [0, 1], [0, 1]],
    ]
    assert actions[2].tolist() == [3, 0]


def test_chunks_of_one_are_the_actions():
    actions = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert np.array_equal(cut(actions, [0, 1, 1, 2], 1, PUSH)[0][:, 0], actions)


def test_arms_that_are_given_targets_keep_them_past_the_end_of_an_episode():
    actions = np.array([[0.1, 1, 0.5, 0], [0.2, 0, 0.6, 1]], np.float32)
    chunks, _ = cut(actions, [7, 7], 3, TWO_ARMS)
    assert np.array_equal(chunks[0], actions[[0, 1, 1]])
    assert np.array_equal(chunks[1], actions[[1, 1, 1]])


def test_motions_count_past_an_end_and_targets_only_if_they_are_held():
    actions = np.zeros((3, 4), np.float32)
    known = [[True, True, True], [True, True, False], [True, False, False]]
    assert cut(actions[:, :2], [0, 0, 0], 3, PUSH)[1].all()
    assert cut(actions, [0, 0, 0], 3, TWO_ARMS)[1].tolist() == known
    assert cut(actions, [0, 0, 0], 3, TWO_ARMS, held=True)[1].all()


def test_targets_are_learned_as_differences_from_the_proprioception_of_the_decision():
    actions = np.array([[0.1, 1, 0.5, 0], [0.2, 0, 0.7, 1]], np.float32)
    state = np.array([[0.1, 9, 0.25, 9, 9], [0.2, 9, 0.5, 9, 9]], np.float32)
    chunks, _ = cut(actions, [0, 0], 2, TWO_ARMS, deltas=True, state=state)
    wanted = [[[0, 1, 0.25, 0], [0.1, 0, 0.45, 1]], [[0, 0, 0.2, 1], [0, 0, 0.2, 1]]]
    assert chunks == pytest.approx(np.array(wanted), abs=1e-6)
    with pytest.raises(ConfigError, match=r"robot.deltas: actions have 4 dimensions, proprioception has 2"):
        cut(actions, [0, 0], 2, TWO_ARMS, deltas=True, state=state[:, :2])


def test_statistics_of_differences_are_those_of_all_places_of_chunks_that_count():
    actions = np.array([[1, 0, 1, 0], [3, 0, 1, 0], [6, 0, 1, 0]], np.float32)
    found = replace(make_demonstrations(), actions=actions, episode_index=np.zeros(3, np.int64), state=actions)
    learned = Chunks.of(found, 2, TWO_ARMS, deltas=True).learned_actions()
    assert learned[:, 0].tolist() == [0, 2, 0, 3, 0]


def test_what_does_not_count_changes_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of an episode of 2 frames and chunks of 4, the targets of the last two or three places may be anything."""
    policy, demonstrations = make_policy(tmp_path), make_demonstrations((2, 2))
    inner, masks = policy.supervised_loss, list[list[list[bool]]]()

    def spy(inputs, targets, *, counted, **settings):
        masks.append(counted.tolist())
        plain = inner(inputs, targets, counted=counted, **settings)
        other = targets.unflatten(1, (4, 7)).clone()
        other[~counted] = policy.codec.first_id
        assert torch.equal(inner(inputs, other.flatten(1), counted=counted, **settings), plain)
        by_hand = [inner(inputs, targets, counted=one, **settings) for one in _single(counted)]
        assert plain.item() == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-5)
        return plain

    monkeypatch.setattr(policy, "supervised_loss", spy)
    targets = tuple(ActionDimension(f"a{i}", "absolute") for i in range(7))
    settings = ImitationConfig(steps=1, batch=4, grounding_share=0)
    imitate(policy, demonstrations, Chunks.of(demonstrations, 4, targets), settings, 0, None, lambda *_: None)
    assert sorted(masks[0]) == [[True, False, False, False]] * 2 + [[True, True, False, False]] * 2


def _single(counted: torch.Tensor) -> Iterator[torch.Tensor]:
    """Masks that count one of the actions each."""
    for row, place in counted.nonzero().tolist():
        mask = torch.zeros_like(counted)
        mask[row, place] = True
        yield mask


def test_both_grippers_of_two_arms_stay_as_they_are_in_statistics():
    demonstrations = make_demonstrations()
    demonstrations.actions = demonstrations.actions[:, :4]
    assert dataset_statistics(demonstrations, TWO_ARMS)["action"]["mask"] == [True, False, True, False]


def test_a_data_set_of_another_robot_is_refused():
    with pytest.raises(ConfigError, match=r"dataset: its actions have 7 dimensions, the simulator's have 2 \(push, gr"):
        dataset_statistics(make_demonstrations(), PUSH)
    with pytest.raises(ConfigError, match=r"dataset: its actions have 3 dimensions"):
        cut(np.zeros((2, 3), np.float32), [0, 0], 1, PUSH)


def test_statistics_of_a_data_set():
    statistics = dataset_statistics(make_demonstrations(), MOTIONS)
    action, proprioception = statistics["action"], statistics["proprio"]
    assert action["mask"] == [True] * 6 + [False]
    assert proprioception["mask"] == [True] * 7
    assert action["max"][6] == 1.0
    assert action["min"][0] == pytest.approx(np.sin(5) * 0.02)
    assert len(action["q01"]) == len(proprioception["q99"]) == 7
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (10, 2)
