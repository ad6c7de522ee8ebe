"""Log-probs, validity and advantages at each level, by hand."""

import pytest
import torch

from loss_samples import LEVELS, PLAYED, SECOND_DIMENSION, TOKENS
from treadle.algorithms.levels import expand_advantages, join_log_probs, masked_mean, valid_entries, valid_positions


def test_join_sums_over_dimensions_and_actions() -> None:
    assert join_log_probs(TOKENS, "token").tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert join_log_probs(TOKENS, "action").tolist() == [[1 + 2, 3 + 4], [5 + 6, 7 + 8]]
    assert join_log_probs(TOKENS, "chunk").tolist() == [1 + 2 + 3 + 4, 5 + 6 + 7 + 8]


def test_join_leaves_out_masked_dimensions_and_actions_that_were_not_played() -> None:
    assert join_log_probs(TOKENS, "token", SECOND_DIMENSION).tolist() == [[[0, 2], [0, 4]], [[0, 6], [0, 8]]]
    assert join_log_probs(TOKENS, "action", SECOND_DIMENSION).tolist() == [[2, 4], [6, 8]]
    assert join_log_probs(TOKENS, "chunk", SECOND_DIMENSION).tolist() == [2 + 4, 6 + 8]
    assert join_log_probs(TOKENS, "chunk", SECOND_DIMENSION, PLAYED).tolist() == [2, 6 + 8]


def test_join_refuses_log_probs_without_positions() -> None:
    with pytest.raises(ValueError, match=r"\[B, P, E\], found shape \(2, 4\)"):
        join_log_probs(TOKENS.flatten(1), "token")


def test_valid_entries_at_each_level() -> None:
    played = torch.tensor([[True, False], [False, False]])
    yes, no = [True, True], [False, False]
    assert valid_entries(played, "token", (2, 2)).tolist() == [[yes, no], [no, no]]
    assert valid_entries(played, "token", (2, 2), SECOND_DIMENSION).tolist() == [[[False, True], no], [no, no]]
    assert valid_entries(played, "action", (2, 2), SECOND_DIMENSION).tolist() == [[True, False], no]
    assert valid_entries(played, "chunk", (2, 2), SECOND_DIMENSION).tolist() == [True, False]
    for level in LEVELS:
        assert not valid_entries(played, level, (2, 2), torch.tensor([False, False])).any()


# Two decisions of three actions with one set of two log-probs each; of the second, nothing was played.
ONE_SET = torch.tensor([[[1.0, 2.0]], [[5.0, 6.0]]])
FIRST_PLAYED = torch.tensor([[False, True, False], [False, False, False]])


def test_one_set_of_log_probs_is_joined_whole_where_any_action_was_played() -> None:
    assert join_log_probs(ONE_SET, "token", valid=FIRST_PLAYED).tolist() == [[[1, 2]], [[0, 0]]]
    assert join_log_probs(ONE_SET, "action", valid=FIRST_PLAYED).tolist() == [[1 + 2], [0]]
    assert join_log_probs(ONE_SET, "chunk", valid=FIRST_PLAYED).tolist() == [1 + 2, 0]
    assert join_log_probs(ONE_SET, "sequence", valid=FIRST_PLAYED).tolist() == [(1 + 2) / 2, 0]
    assert join_log_probs(ONE_SET, "sequence", SECOND_DIMENSION, FIRST_PLAYED).tolist() == [2, 0]
    assert join_log_probs(ONE_SET, "chunk").tolist() == [1 + 2, 5 + 6]


def test_valid_entries_of_one_set_of_log_probs() -> None:
    assert valid_entries(FIRST_PLAYED, "token", (1, 2)).tolist() == [[[True, True]], [[False, False]]]
    assert valid_entries(FIRST_PLAYED, "token", (1, 2), SECOND_DIMENSION).tolist() == [[[False, True]], [[False] * 2]]
    assert valid_entries(FIRST_PLAYED, "action", (1, 2)).tolist() == [[True], [False]]
    assert valid_entries(FIRST_PLAYED, "chunk", (1, 2)).tolist() == [True, False]
    assert valid_positions(FIRST_PLAYED, 1).tolist() == [[True], [False]]
    assert valid_positions(FIRST_PLAYED, 3) is FIRST_PLAYED


@pytest.mark.parametrize(("positions", "actions"), [(2, 3), (3, 2), (2, 1)])
def test_positions_are_as_many_as_actions_or_one(positions: int, actions: int) -> None:
    played = torch.ones(1, actions, dtype=torch.bool)
    reason = rf"{positions} positions of log-probs for {actions} actions: allowed are as many, or 1"
    with pytest.raises(ValueError, match=reason):
        valid_entries(played, "token", (positions, 2))
    with pytest.raises(ValueError, match=reason):
        join_log_probs(torch.zeros(1, positions, 2), "chunk", valid=played)


def test_advantages_broadcast_with_entries() -> None:
    per_action, per_chunk = torch.ones(5, 3), torch.ones(5)
    shapes = {level: expand_advantages(per_chunk, level).shape for level in LEVELS}
    assert shapes == {"token": (5, 1, 1), "action": (5, 1), "chunk": (5,), "sequence": (5,)}
    assert expand_advantages(per_action, "token").shape == (5, 3, 1)
    assert expand_advantages(per_action, "action").shape == (5, 3)


def test_masked_mean() -> None:
    x = torch.tensor([1.0, 2.0, torch.nan, 6.0])
    mask = torch.tensor([True, True, False, True])
    assert masked_mean(x, mask) == 9 / 3
    assert masked_mean(x, mask, 12) == 9 / 12
    assert masked_mean(x, mask, torch.tensor(6)) == 9 / 6
    assert masked_mean(x, torch.zeros(4, dtype=torch.bool)) == 0
    assert masked_mean(x, mask, 0.5) == 9 / 0.5
