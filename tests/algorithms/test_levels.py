"""Log-probs, validity and advantages at each level, by hand."""

import pytest
import torch

from loss_samples import LEVELS, PLAYED, SECOND_DIMENSION, TOKENS
from treadle.algorithms.levels import expand_advantages, join_log_probs, masked_mean, valid_entries


def test_join_sums_over_dimensions_and_actions() -> None:
    assert join_log_probs(TOKENS, "token", 2).tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert join_log_probs(TOKENS, "action", 2).tolist() == [[1 + 2, 3 + 4], [5 + 6, 7 + 8]]
    assert join_log_probs(TOKENS, "chunk", 2).tolist() == [1 + 2 + 3 + 4, 5 + 6 + 7 + 8]


def test_join_leaves_out_masked_dimensions_and_actions_that_were_not_played() -> None:
    assert join_log_probs(TOKENS, "token", 2, SECOND_DIMENSION).tolist() == [[[0, 2], [0, 4]], [[0, 6], [0, 8]]]
    assert join_log_probs(TOKENS, "action", 2, SECOND_DIMENSION).tolist() == [[2, 4], [6, 8]]
    assert join_log_probs(TOKENS, "chunk", 2, SECOND_DIMENSION).tolist() == [2 + 4, 6 + 8]
    assert join_log_probs(TOKENS, "chunk", 2, SECOND_DIMENSION, PLAYED).tolist() == [2, 6 + 8]


def test_join_refuses_tokens_that_are_no_whole_actions() -> None:
    with pytest.raises(ValueError, match=r"\[B, C \* 3\], found shape \(2, 4\)"):
        join_log_probs(TOKENS, "token", 3)


def test_valid_entries_at_each_level() -> None:
    played = torch.tensor([[True, False], [False, False]])
    yes, no = [True, True], [False, False]
    assert valid_entries(played, "token", 2).tolist() == [[yes, no], [no, no]]
    assert valid_entries(played, "token", 2, SECOND_DIMENSION).tolist() == [[[False, True], no], [no, no]]
    assert valid_entries(played, "action", 2, SECOND_DIMENSION).tolist() == [[True, False], no]
    assert valid_entries(played, "chunk", 2, SECOND_DIMENSION).tolist() == [True, False]
    for level in LEVELS:
        assert not valid_entries(played, level, 2, torch.tensor([False, False])).any()


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
