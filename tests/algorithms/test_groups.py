"""Advantages of episodes in groups, against arithmetic that is written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from treadle.algorithms.groups import (
    alike_advantages,
    dr_grpo_advantages,
    group_means,
    grpo_advantages,
    rloo_advantages,
    varied_groups,
)

# Scenario 7 has returns 1, 2 and 6; scenario 4 has 5 twice; scenario 9 was played once.
SCORES = torch.tensor([1.0, 5.0, 2.0, 8.0, 6.0, 5.0])
GROUPS = torch.tensor([7, 4, 7, 9, 7, 4])
ESTIMATORS = [grpo_advantages, dr_grpo_advantages, rloo_advantages]


def test_grpo_divides_by_the_groups_spread() -> None:
    # mean 3, deviations -2 -1 3, sample variance (4 + 1 + 9) / 2
    std = 7**0.5
    assert_close(grpo_advantages(SCORES, GROUPS, eps=0.0), torch.tensor([-2 / std, 0, -1 / std, 0, 3 / std, 0]))
    assert_close(grpo_advantages(SCORES, GROUPS, eps=1.0)[4], torch.tensor(3 / (std + 1)))


def test_dr_grpo_does_not() -> None:
    assert dr_grpo_advantages(SCORES, GROUPS).tolist() == [-2, 0, -1, 0, 3, 0]


def test_rloo_leaves_its_own_score_out() -> None:
    # 1 less the mean of 2 and 6; 2 less that of 1 and 6; 6 less that of 1 and 2.
    assert_close(rloo_advantages(SCORES, GROUPS), torch.tensor([-3.0, 0, -1.5, 0, 4.5, 0]))


def test_returns_are_compared_with_those_of_moments_alike() -> None:
    # Of features 0, 0 and 3: deviation 2 ** 0.5, width 2 ** 0.5 * 3 ** -0.2, so 3 is 2.64 widths away.
    far = math.exp(-(9 / (2 * 3**-0.4)) / 2)
    found = alike_advantages(
        torch.tensor([1.0, 3.0, 7.0]), torch.tensor([0, 1, 1]), torch.tensor([[0.0], [0.0], [3.0]])
    )
    assert_close(found, torch.tensor([1 - (3 + far * 7) / (1 + far), 3 - 1, 7 - 1.0]))


def test_moments_that_do_not_differ_make_one_group() -> None:
    scores, same = torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3, 2)
    found = alike_advantages(scores, torch.arange(3), same)
    assert_close(found, rloo_advantages(scores, torch.zeros(3, dtype=torch.int64)))


def test_moments_with_none_alike_have_no_advantage() -> None:
    moments = torch.tensor([[0.0]] * 99 + [[1.0]])
    found = alike_advantages(torch.arange(100.0), torch.arange(100), moments)
    assert found[-1] == 0
    assert found[:-1].any()
    alone = alike_advantages(torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1))
    assert not alone.any(), "of one episode"


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_groups_of_one_and_of_equal_scores_have_no_advantage(estimate) -> None:
    # Three times 0.1 does not sum to 0.3: rounding must not be blown up by the division.
    scores, groups = torch.full((8,), 0.1), torch.tensor([0, 0, 0, 1, 2, 3, 3, 3])
    assert estimate(scores, groups).tolist() == [0] * 8
    assert not varied_groups(scores, groups).any()
    assert estimate(scores[:0], groups[:0]).shape == (0,)


def test_varied_groups_and_means() -> None:
    assert varied_groups(SCORES, GROUPS).tolist() == [True, False, True, False, True, False]
    assert group_means(SCORES, GROUPS).tolist() == [3, 5, 3, 8, 3, 5]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[E\], found shapes \(2, 3\) and \(6,\)"):
        grpo_advantages(SCORES.reshape(2, 3), GROUPS)


@st.composite
def episodes(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    groups = draw(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
    scores = draw(st.lists(st.integers(-3, 3), min_size=len(groups), max_size=len(groups)))
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(groups)


@settings(deadline=None, max_examples=60)
@given(episodes(), st.sampled_from(ESTIMATORS), st.data())
def test_advantages_of_a_group_sum_to_zero_whatever_the_order(case, estimate, data) -> None:
    scores, groups = case
    advantages = estimate(scores, groups)
    assert_close(group_means(advantages, groups), torch.zeros_like(scores))
    assert torch.equal(advantages != 0, varied_groups(scores, groups) & (advantages != 0))
    order = torch.tensor(data.draw(st.permutations(range(len(scores)))))
    assert_close(estimate(scores[order], groups[order]), advantages[order])
    assert_close(estimate(scores + 5, groups), advantages)
