"""Advantages, against arithmetic that is written out."""

from random import Random
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from played import valid_actions
from treadle.algorithms.advantages import Moments, discounted_returns, estimate_gae, explained_variance, normalize
from treadle.algorithms.masks import flatten_actions, reduce_to_chunk, unflatten_actions

torch.set_num_threads(1)

G, L = 0.5, 0.8  # gamma and lambda; G * L = 0.4


def column(*entries: float) -> Tensor:
    return torch.tensor(entries, dtype=torch.float64)[:, None]


def flags(*entries: int) -> Tensor:
    return torch.tensor(entries, dtype=torch.bool)[:, None]


def gae(
    rewards: Tensor, values: Tensor, ended: Tensor, bootstrap: Tensor, last: float, valid: Tensor
) -> tuple[list[float], list[float]]:
    advantages, returns = estimate_gae(
        rewards, values, ended, bootstrap, torch.tensor([last]).double(), valid, gamma=G, gae_lambda=L
    )
    return advantages[:, 0].tolist(), returns[:, 0].tolist()


def test_rollout_cut_off_is_followed_by_last_values() -> None:
    advantages, returns = gae(column(1, 2, 3), column(0.5, 1, 2), flags(0, 0, 0), column(9, 9, 9), 4.0, flags(1, 1, 1))
    a2 = 3 + 0.5 * 4 - 2
    a1 = (2 + 0.5 * 2 - 1) + 0.4 * a2
    a0 = (1 + 0.5 * 1 - 0.5) + 0.4 * a1
    assert (a2, a1, a0) == pytest.approx((3.0, 3.2, 2.28))
    assert advantages == pytest.approx([a0, a1, a2])
    assert returns == pytest.approx([a0 + 0.5, a1 + 1, a2 + 2])


def test_termination_bootstraps_nothing_and_stops_accumulation() -> None:
    advantages, _ = gae(column(1, 2, 3), column(0.5, 1, 2), flags(0, 1, 0), column(0, 0, 0), 4.0, flags(1, 1, 1))
    # Entry 2 belongs to the next episode: 3 + 0.5 * 4 - 2 = 3, and nothing of it reaches entry 1.
    assert advantages == pytest.approx([(1 + 0.5 * 1 - 0.5) + 0.4 * (2 - 1), 2 - 1, 3.0])


def test_truncation_bootstraps_the_final_observation_and_stops_accumulation() -> None:
    advantages, returns = gae(column(1, 2, 3), column(0.5, 1, 2), flags(0, 1, 0), column(9, 6, 9), 4.0, flags(1, 1, 1))
    a1 = 2 + 0.5 * 6 - 1
    assert advantages == pytest.approx([(1 + 0.5 * 1 - 0.5) + 0.4 * a1, a1, 3.0])
    assert returns == pytest.approx([1 + 0.4 * a1 + 0.5, 2 + 0.5 * 6, 5.0])


def test_ending_with_the_last_entry_ignores_last_values() -> None:
    advantages, _ = gae(column(1, 2), column(0, 1), flags(0, 1), column(0, 0), 100.0, flags(1, 1))
    assert advantages == pytest.approx([1 + 0.5 * 1 + 0.4 * 1, 1.0])


def test_ending_inside_a_chunk_with_partial_reset() -> None:
    # T = 2 chunks of C = 3 actions. The episode is truncated with action 1; the next starts with chunk 1.
    rewards = torch.tensor([[[1.0, 2.0, 99.0]], [[3.0, 4.0, 5.0]]])
    values = torch.tensor([[[0.5, 1.0, torch.nan]], [[2.0, 3.0, 1.0]]])
    ended = torch.tensor([[[0, 1, 0]], [[0, 0, 0]]], dtype=torch.bool)
    bootstrap = torch.tensor([[[0.0, 6.0, 0.0]], [[0.0, 0.0, 0.0]]])
    timeline = (flatten_actions(x) for x in (rewards, values, ended, bootstrap))
    advantages, returns = estimate_gae(
        *timeline, torch.tensor([4.0]), flatten_actions(valid_actions(ended)), gamma=G, gae_lambda=L
    )
    b2 = 5 + 0.5 * 4 - 1  # after the rollout
    b1 = (4 + 0.5 * 1 - 3) + 0.4 * b2  # the next action's value is the critic's output for that action
    b0 = (3 + 0.5 * 3 - 2) + 0.4 * b1
    a1 = 2 + 0.5 * 6 - 1  # V of the final observation, not of the new episode's first
    a0 = (1 + 0.5 * 1 - 0.5) + 0.4 * a1
    expected = torch.tensor([[[a0, a1, 0.0]], [[b0, b1, b2]]])
    assert_close(unflatten_actions(advantages, 3), expected)
    assert_close(unflatten_actions(returns, 3), expected + torch.tensor([[[0.5, 1.0, 0.0]], [[2.0, 3.0, 1.0]]]))


def test_fixed_length_masks_what_follows_the_ending() -> None:
    ended = torch.tensor([[[0, 1]], [[0, 0]], [[0, 0]]], dtype=torch.bool)
    valid = flatten_actions(valid_actions(ended, partial_reset=False))
    ones = torch.ones(6, 1)
    advantages, _ = estimate_gae(
        ones, 0 * ones, flatten_actions(ended), 0 * ones, torch.tensor([50.0]), valid, gamma=G, gae_lambda=L
    )
    assert_close(advantages[:, 0], torch.tensor([1 + 0.4 * 1, 1, 0, 0, 0, 0]))


def test_chunk_level_sums_rewards_and_discounts_once_a_chunk() -> None:
    rewards = torch.tensor([[[1.0, 2.0]], [[3.0, 99.0]], [[5.0, 6.0]]])
    ended = torch.tensor([[[0, 0]], [[1, 0]], [[0, 0]]], dtype=torch.bool)
    rewards, ended, valid = reduce_to_chunk(rewards, ended, valid_actions(ended))
    advantages, _ = estimate_gae(
        rewards,
        torch.tensor([[1.0], [2.0], [3.0]]),
        ended,
        torch.zeros(3, 1),
        torch.tensor([8.0]),
        valid,
        gamma=G,
        gae_lambda=L,
    )
    a1 = 3 - 2
    assert_close(advantages[:, 0], torch.tensor([(1 + 2 + 0.5 * 2 - 1) + 0.4 * a1, a1, (5 + 6) + 0.5 * 8 - 3]))


def test_invalid_entries_may_hold_anything() -> None:
    advantages, returns = gae(
        column(1, torch.nan, 2), column(0.5, torch.inf, 1), flags(0, 1, 0), column(0, torch.nan, 0), 4.0, flags(1, 0, 1)
    )
    # As if the middle entry were not there: its ending does not count either.
    a1 = 2 + 0.5 * 4 - 1
    assert advantages == pytest.approx([(1 + 0.5 * 1 - 0.5) + 0.4 * a1, 0, a1])
    assert returns == pytest.approx([1 + 0.4 * a1 + 0.5, 0, a1 + 1])


def test_everything_masked_gives_zeros() -> None:
    advantages, returns = gae(column(1, 2), column(3, 4), flags(0, 0), column(0, 0), 4.0, flags(0, 0))
    assert advantages == [0, 0]
    assert returns == [0, 0]


@pytest.mark.parametrize("name", ["values", "ended", "bootstrap_values", "valid", "last_values"])
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    x, ended = torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool)
    given = {"values": x, "ended": ended, "bootstrap_values": x, "last_values": torch.zeros(2), "valid": ~ended}
    given[name] = given[name][..., :1]
    with pytest.raises(ValueError, match=f"^{name} has shape"):
        estimate_gae(x, **given, gamma=G, gae_lambda=L)


class Timeline(NamedTuple):
    rewards: Tensor
    values: Tensor
    ended: Tensor
    bootstrap: Tensor
    last: Tensor
    valid: Tensor


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    entries, slots = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def happens(share: float) -> Tensor:
        return torch.rand(entries, slots, generator=generator) < share

    ended = happens(0.3)
    bootstrap = torch.where(happens(0.5), normal(entries, slots), 0)
    return Timeline(normal(entries, slots), normal(entries, slots), ended, bootstrap, normal(slots), happens(0.7))


@settings(deadline=None, max_examples=60)
@given(timelines(), st.randoms(use_true_random=False))
def test_permuting_slots_permutes_advantages(x: Timeline, random: Random) -> None:
    order = list(range(x.last.shape[0]))
    random.shuffle(order)
    plain = estimate_gae(*x, gamma=0.9, gae_lambda=0.7)
    permuted = estimate_gae(*(part[..., order] for part in x), gamma=0.9, gae_lambda=0.7)
    for one, other in zip(plain, permuted, strict=True):
        assert torch.equal(one[:, order], other)


@settings(deadline=None, max_examples=60)
@given(timelines(), st.lists(st.integers(0, 9), max_size=6))
def test_padding_with_invalid_entries_changes_nothing(x: Timeline, places: list[int]) -> None:
    kept = list(range(x.rewards.shape[0]))
    for place in places:
        kept.insert(min(place, len(kept)), -1)
    source = torch.tensor(kept)
    padded = Timeline(*(part if part is x.last else part[source.clamp(min=0)] for part in x))
    padded = padded._replace(
        rewards=torch.where(source[:, None] < 0, torch.nan, padded.rewards),
        ended=padded.ended | (source[:, None] < 0),
        valid=padded.valid & (source[:, None] >= 0),
    )
    for one, other in zip(
        estimate_gae(*x, gamma=0.9, gae_lambda=0.7), estimate_gae(*padded, gamma=0.9, gae_lambda=0.7), strict=True
    ):
        assert torch.equal(one, other[source >= 0])
        assert not other[source < 0].any()


@settings(deadline=None, max_examples=60)
@given(timelines())
def test_lambda_1_is_the_discounted_return_minus_the_value(x: Timeline) -> None:
    advantages, returns = estimate_gae(*x, gamma=0.9, gae_lambda=1.0)
    for slot in range(x.last.shape[0]):
        entries = [n for n in range(x.rewards.shape[0]) if x.valid[n, slot]]
        for place, n in enumerate(entries):
            total, discount = 0.0, 1.0
            for m in entries[place:]:
                total += discount * float(x.rewards[m, slot])
                discount *= 0.9
                if x.ended[m, slot]:
                    total += discount * float(x.bootstrap[m, slot])
                    break
            else:
                total += discount * float(x.last[slot])
            assert float(returns[n, slot]) == pytest.approx(total, abs=1e-9)
            assert float(advantages[n, slot]) == pytest.approx(total - float(x.values[n, slot]), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(timelines())
def test_lambda_0_is_the_one_step_error(x: Timeline) -> None:
    x = x._replace(valid=torch.ones_like(x.valid))
    advantages, _ = estimate_gae(*x, gamma=0.9, gae_lambda=0.0)
    following = torch.where(x.ended, x.bootstrap, torch.cat((x.values[1:], x.last[None])))
    assert_close(advantages, x.rewards + 0.9 * following - x.values)


def test_normalize_uses_valid_entries_and_the_population_std() -> None:
    x = torch.tensor([[1.0, 2.0], [torch.nan, 6.0]])
    valid = torch.tensor([[True, True], [False, True]])
    # mean 3, deviations -2 -1 3, variance (4 + 1 + 9) / 3
    std = (14 / 3) ** 0.5
    assert_close(normalize(x, valid, eps=0.0), torch.tensor([[-2 / std, -1 / std], [0.0, 3 / std]]))
    assert_close(normalize(x, valid, eps=1.0)[1, 1], torch.tensor(3 / (std + 1)))


def test_normalize_of_few_or_equal_entries() -> None:
    x = torch.tensor([5.0, 7.0])
    assert normalize(x, torch.tensor([False, False])).tolist() == [0, 0]
    assert normalize(x, torch.tensor([False, True])).tolist() == [0, 7]
    assert normalize(torch.full((8,), 0.5), torch.ones(8, dtype=torch.bool)).tolist() == [0] * 8


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    """As if each part were a rank: normalisation is over the whole batch, not over each part's own."""
    x = torch.tensor([1.0, 2.0, 6.0, 9.0, 100.0])
    valid = torch.tensor([True, True, True, True, False])
    ranks = (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 5))
    parts = [Moments.of(x[rank], valid[rank]) for rank in ranks]
    whole = parts[0] + parts[1] + parts[2] + parts[3]
    # mean 4.5, deviations -3.5 -2.5 1.5 4.5: squares sum to 12.25 + 6.25 + 2.25 + 20.25
    assert (int(whole.count), float(whole.mean), float(whole.deviations)) == (4, 4.5, 41)
    sharded = torch.cat([normalize(x[rank], valid[rank], moments=whole) for rank in ranks])
    assert_close(sharded, normalize(x, valid))
    per_rank = torch.cat([normalize(x[rank], valid[rank]) for rank in ranks])
    assert not torch.allclose(per_rank, sharded, atol=0.1)


def test_discounted_returns_stop_at_an_ending_and_skip_what_is_invalid() -> None:
    returns = discounted_returns(column(1, 2, 99, 4, 8), flags(0, 1, 1, 0, 0), flags(1, 1, 0, 1, 1), gamma=0.5)
    assert returns[:, 0].tolist() == [1 + 0.5 * 2, 2, 0, 4 + 0.5 * 8, 8]


def explained(values: torch.Tensor, returns: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return explained_variance(Moments.of(returns - values, valid), Moments.of(returns, valid))


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 3.0, 5.0, 100.0])
    valid = torch.tensor([True, True, True, False])
    assert explained(returns, returns, valid) == 1
    assert explained(torch.full((4,), 2.0), returns, valid) == pytest.approx(0)
    # errors 0 1 0: variance 2/9; returns 1 3 5: variance 8/3
    assert float(explained(torch.tensor([1.0, 2.0, 5.0, 0.0]), returns, valid)) == pytest.approx(1 - (2 / 9) / (8 / 3))


def test_explained_variance_with_nothing_to_explain_is_0() -> None:
    x = torch.tensor([2.0, 2.0, 5.0])
    assert explained(x + 1, x, torch.tensor([True, True, False])) == 0
    assert explained(x + 1, x, torch.tensor([False, False, True])) == 0
    assert explained(x, x, torch.zeros(3, dtype=torch.bool)) == 0
