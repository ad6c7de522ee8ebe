"""Masks, on hand-drawn timelines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from played import valid_actions
from treadle.algorithms.masks import (
    episode_lengths,
    flatten_actions,
    reduce_to_chunk,
    trajectory_totals,
    trajectory_weights,
    unflatten_actions,
)

torch.set_num_threads(1)

# Two chunk steps, one slot, three actions; the episode ends with action 1 of the first chunk.
ENDS_INSIDE = torch.tensor([[[0, 1, 0]], [[0, 0, 0]]], dtype=torch.bool)


def test_partial_reset_masks_the_rest_of_the_chunk_only() -> None:
    assert valid_actions(ENDS_INSIDE).tolist() == [[[True, True, False]], [[True, True, True]]]


def test_fixed_length_masks_everything_after_the_ending() -> None:
    expected = [[[True, True, False]], [[False, False, False]]]
    assert valid_actions(ENDS_INSIDE, partial_reset=False).tolist() == expected


def test_ending_with_the_last_action_masks_nothing_of_its_chunk() -> None:
    ended = torch.tensor([[[0, 0, 1]], [[1, 0, 0]]], dtype=torch.bool)
    assert valid_actions(ended).tolist() == [[[True, True, True]], [[True, False, False]]]
    assert valid_actions(ended, partial_reset=False).tolist() == [[[True, True, True]], [[False, False, False]]]


def test_endings_repeated_by_a_simulator_do_not_unmask() -> None:
    ended = torch.tensor([[[1, 1, 1]], [[1, 1, 1]]], dtype=torch.bool)
    assert valid_actions(ended).tolist() == [[[True, False, False]]] * 2
    assert valid_actions(ended, partial_reset=False).sum() == 1


def test_slots_are_independent() -> None:
    ended = torch.tensor([[[0, 1], [0, 0]], [[0, 0], [1, 0]]], dtype=torch.bool)
    assert valid_actions(ended, partial_reset=False).tolist() == [
        [[True, True], [True, True]],
        [[False, False], [True, False]],
    ]


def test_chunk_sums_rewards_and_ors_endings_of_valid_actions_only() -> None:
    rewards = torch.tensor([[[1.0, 2.0, 100.0], [1.0, 1.0, 1.0]], [[5.0, 5.0, 5.0], [0.5, 0.25, 0.0]]])
    ended = torch.tensor([[[0, 1, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, 1]]], dtype=torch.bool)
    valid = torch.tensor([[[1, 1, 0], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]], dtype=torch.bool)
    rewards, ended, valid = reduce_to_chunk(rewards, ended, valid)
    assert rewards.tolist() == [[1.0 + 2.0, 3.0], [0.0, 0.75]]
    assert ended.tolist() == [[True, False], [False, True]]  # the ending of a masked chunk does not count
    assert valid.tolist() == [[True, True], [False, True]]


def test_rewards_of_masked_actions_may_be_nan() -> None:
    rewards, _, _ = reduce_to_chunk(
        torch.tensor([[[1.0, torch.nan]]]), torch.tensor([[[True, False]]]), torch.tensor([[[True, False]]])
    )
    assert rewards.tolist() == [[1.0]]


def test_timeline_orders_actions_within_chunks_and_comes_back() -> None:
    x = torch.arange(2 * 2 * 3).reshape(2, 2, 3)  # slot 0 plays 0 1 2, then 6 7 8; slot 1 plays 3 4 5, then 9 10 11
    timeline = flatten_actions(x)
    assert timeline.T.tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert torch.equal(unflatten_actions(timeline, 3), x)


def test_lengths_of_episodes_one_after_another() -> None:
    # Slot 0 ends inside its second chunk, and the next episode begins; slot 1 goes on to the end.
    ended = torch.tensor([[[0, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    assert episode_lengths(ended, valid_actions(ended)).tolist() == [[3, 6], [3, 6], [2, 6]]


def test_lengths_of_episodes_of_fixed_length() -> None:
    ended = torch.tensor([[[0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.bool)
    valid = valid_actions(ended, partial_reset=False)
    assert episode_lengths(ended, valid).tolist() == [[3, 2], [3, 0], [0, 0]]


def test_every_episode_weighs_the_same_under_trajectory_weights() -> None:
    # Episodes of 1 and of 3 actions, the latter in two decisions: means 4 and 2 of the entries below, so 3.
    valid = torch.tensor([[True, False], [True, True], [True, False], [False, False]])
    lengths = torch.tensor([1, 3, 3, 0])
    weights = trajectory_weights(lengths, valid)
    assert_close(weights, torch.tensor([4 / 2 / 1, 4 / 2 / 3, 4 / 2 / 3, 0]))
    losses = torch.tensor([[4.0, 9.0], [1.0, 2.0], [3.0, 9.0], [9.0, 9.0]])
    assert_close((losses * weights[:, None])[valid].mean(), torch.tensor(3.0))
    # As the reference has it: mean(loss / (length / horizon) * mask) over the two episodes of horizon 3.
    assert_close((4 / (1 / 3) + (1 + 2 + 3) / (3 / 3)) / torch.tensor(2 * 3.0), torch.tensor(3.0))


def test_totals_of_the_whole_batch_weigh_its_parts() -> None:
    """Episodes of 1 and of 3 actions: alone each would get weights of 1, together 2 and 2 / 3."""
    first, second = torch.tensor([[True, False]]), torch.tensor([[True, True], [True, False]])
    lengths = torch.tensor([1]), torch.tensor([3, 3])
    parts = [trajectory_totals(n, valid) for n, valid in zip(lengths, (first, second), strict=True)]
    whole = parts[0] + parts[1]
    assert whole.tolist() == pytest.approx([4, 2])
    assert trajectory_weights(lengths[0], first, whole).tolist() == [2]
    assert trajectory_weights(lengths[1], second, whole).tolist() == pytest.approx([2 / 3] * 2)


def test_trajectory_weights_of_nothing() -> None:
    assert trajectory_weights(torch.zeros(2), torch.zeros(2, 3, dtype=torch.bool)).tolist() == [0, 0]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.booleans())
def test_lengths_add_up_to_what_was_played(seed: int, partial_reset: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    ended = torch.rand(5, 3, 2, generator=generator) < 0.2
    valid = valid_actions(ended, partial_reset=partial_reset)
    lengths = episode_lengths(ended, valid)
    weights = trajectory_weights(lengths.flatten(), valid.flatten(0, 1))
    played = valid.sum(-1).flatten()
    assert_close((weights * played).sum(), played.sum().float())
    if not partial_reset:
        assert torch.equal(lengths.amax(0), valid.sum((0, 2)))
