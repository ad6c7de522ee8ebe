"""Losses, against arithmetic that is written out."""

from dataclasses import fields, replace
from math import exp, inf, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from treadle.algorithms.levels import Level, expand_advantages, join_log_probs, masked_mean, valid_entries
from treadle.algorithms.losses import PolicyBatch, PolicyObjective, policy_loss
from treadle.algorithms.value_loss import ValueBatch, value_loss

torch.set_num_threads(1)

LEVELS: list[Level] = ["token", "action", "chunk", "sequence"]
# Two decisions of two actions with two dimensions.
TOKENS = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
PLAYED = torch.tensor([[True, False], [True, True]])
SECOND_DIMENSION = torch.tensor([False, True])


def objective(level: Level = "token", action_dim: int = 1, **changes: object) -> PolicyObjective:
    plain = PolicyObjective(level=level, action_dim=action_dim, clip_low=0.2, clip_high=0.3)
    return replace(plain, **changes)  # type: ignore[arg-type]


def one_token(ratio: float, advantage: float) -> PolicyBatch:
    """One decision of one action with one dimension."""
    return PolicyBatch(
        log_probs=torch.tensor([[log(ratio) - 1]], requires_grad=True),
        old_log_probs=torch.tensor([[-1.0]]),
        entropy=torch.tensor([[0.7]]),
        advantages=torch.tensor([advantage]),
        valid=torch.tensor([[True]]),
    )


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


def test_advantage_finer_than_the_ratio_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="one ratio cannot carry an advantage per action"):
        expand_advantages(torch.ones(5, 3), "chunk")
    batch = PolicyBatch(TOKENS, TOKENS, TOKENS, torch.ones(2, 2), PLAYED)
    with pytest.raises(ValueError, match="use advantages per chunk"):
        policy_loss(batch, objective("chunk", 2))


def test_masked_mean() -> None:
    x = torch.tensor([1.0, 2.0, torch.nan, 6.0])
    mask = torch.tensor([True, True, False, True])
    assert masked_mean(x, mask) == 9 / 3
    assert masked_mean(x, mask, 12) == 9 / 12
    assert masked_mean(x, mask, torch.tensor(6)) == 9 / 6
    assert masked_mean(x, torch.zeros(4, dtype=torch.bool)) == 0
    assert masked_mean(x, mask, 0.5) == 9 / 0.5


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "blocked"),
    [
        (1.0, 2.0, -1.0 * 2, False),
        (1.5, 2.0, -1.3 * 2, True),  # good and already likelier: clipped at 1 + clip_high
        (0.5, 2.0, -0.5 * 2, False),  # good and less likely: pushed back without bound
        (1.5, -2.0, 1.5 * 2, False),  # bad and likelier: pushed back without bound
        (0.5, -2.0, 0.8 * 2, True),  # bad and already less likely: clipped at 1 - clip_low
        (1.25, 2.0, -1.25 * 2, False),  # within clip_high, beyond clip_low
        (0.75, -2.0, 0.8 * 2, True),  # beyond clip_low, within clip_high
    ],
)
def test_clip_by_sign_of_the_advantage(ratio: float, advantage: float, loss: float, blocked: bool) -> None:
    batch = one_token(ratio, advantage)
    found, metrics = policy_loss(batch, objective())
    assert found.item() == pytest.approx(loss)
    assert metrics.clip_share == float(blocked)
    found.backward()
    assert batch.log_probs.grad is not None
    # d(-r A) / d log r = -r A
    assert batch.log_probs.grad.item() == pytest.approx(0 if blocked else -ratio * advantage)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "blocked"),
    [
        (4.0, -2.0, 3.0 * 2, True),  # the ratio's weight is bounded at c = 3
        (2.5, -2.0, 2.5 * 2, False),
        (4.0, 2.0, -1.3 * 2, True),  # positive advantages know the upper clip only
        (0.5, -2.0, 0.8 * 2, True),
    ],
)
def test_dual_clip_bounds_negative_advantages_only(ratio: float, advantage: float, loss: float, blocked: bool) -> None:
    batch = one_token(ratio, advantage)
    found, metrics = policy_loss(batch, objective(dual_clip=3.0))
    assert found.item() == pytest.approx(loss)
    assert metrics.clip_share == float(blocked)
    found.backward()
    assert batch.log_probs.grad is not None
    assert batch.log_probs.grad.item() == pytest.approx(0 if blocked else -ratio * advantage)


def two_actions() -> PolicyBatch:
    """One decision of two actions with one dimension; ratios 1.5 and 0.5, joint 0.75."""
    return PolicyBatch(
        log_probs=torch.tensor([[log(1.5), log(0.5)]]),
        old_log_probs=torch.zeros(1, 2),
        entropy=torch.tensor([[1.0, 3.0]]),
        advantages=torch.tensor([2.0]),
        valid=torch.tensor([[True, True]]),
    )


def test_action_level_clips_each_action_and_chunk_level_their_product() -> None:
    loss, metrics = policy_loss(two_actions(), objective("action"))
    assert loss.item() == pytest.approx(-(1.3 * 2 + 0.5 * 2) / 2)
    assert metrics.clip_share == 0.5
    assert metrics.ratio_mean.item() == pytest.approx((1.5 + 0.5) / 2)
    assert metrics.ratio_max.item() == pytest.approx(1.5)
    assert metrics.entropy.item() == pytest.approx((1 + 3) / 2)
    assert metrics.kl.item() == pytest.approx(((1.5 - 1 - log(1.5)) + (0.5 - 1 - log(0.5))) / 2)

    loss, metrics = policy_loss(two_actions(), objective("chunk"))
    assert loss.item() == pytest.approx(-0.75 * 2)
    assert metrics.ratio_mean.item() == metrics.ratio_max.item() == pytest.approx(0.75)
    assert metrics.entropy.item() == pytest.approx(1 + 3)
    assert metrics.kl.item() == pytest.approx(0.75 - 1 - log(0.75))


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    loss, metrics = policy_loss(two_actions(), objective("sequence"))
    assert metrics.ratio_mean.item() == pytest.approx(0.75**0.5)
    assert loss.item() == pytest.approx(-(0.75**0.5) * 2)
    assert metrics.entropy.item() == pytest.approx((1 + 3) / 2)
    played = torch.tensor([[True, False]])
    assert join_log_probs(TOKENS[:1], "sequence", 2, valid=played).tolist() == [(1 + 2) / 2]
    assert join_log_probs(TOKENS, "sequence", 2, SECOND_DIMENSION, PLAYED).tolist() == [2, (6 + 8) / 2]
    assert join_log_probs(TOKENS, "sequence", 2).tolist() == [10 / 4, 26 / 4]


def stale(ratio: float, drift: float, advantage: float) -> PolicyBatch:
    """One token: the policy is `ratio` times the proximal one, which is `drift` times the one that acted."""
    batch = one_token(ratio * drift, advantage)
    return replace(batch, proximal_log_probs=batch.old_log_probs + log(drift))


@pytest.mark.parametrize(
    ("ratio", "drift", "advantage", "loss", "slope"),
    [
        (1.0, 1.5, 2.0, -1.5 * 1.0 * 2, -1.5 * 1.0 * 2),  # far from what acted, yet nothing is clipped
        (1.5, 1.5, 2.0, -1.5 * 1.3 * 2, 0),  # clipped around the proximal policy
        (1.1, 9.0, 2.0, -2.0 * 1.1 * 2, -2.0 * 1.1 * 2),  # the weight is cut at 2
        (1.0, 0.25, -2.0, 0.25 * 2, 0.25 * 2),
    ],
)
def test_decoupled_ppo_clips_around_the_proximal_policy(
    ratio: float, drift: float, advantage: float, loss: float, slope: float
) -> None:
    batch = stale(ratio, drift, advantage)
    found, metrics = policy_loss(batch, objective())
    assert found.item() == pytest.approx(loss)
    found.backward()
    assert batch.log_probs.grad is not None
    assert batch.log_probs.grad.item() == pytest.approx(slope)
    assert metrics.stale_weight.item() == pytest.approx(min(drift, 2.0))
    assert metrics.ratio_mean.item() == pytest.approx(ratio)
    # The divergence is from the policy that acted.
    assert metrics.kl.item() == pytest.approx(ratio * drift - 1 - log(ratio * drift), abs=1e-5)


def test_fresh_data_makes_decoupled_ppo_plain() -> None:
    batch = two_actions()
    plain, fresh = (
        policy_loss(replace(batch, proximal_log_probs=x), objective("action")) for x in (None, batch.old_log_probs)
    )
    assert plain == fresh


def test_the_reference_is_penalised_token_by_token_and_joined_as_log_probs() -> None:
    reference = torch.tensor([[log(1.5) - 0.5, log(0.5) + 2]])
    # Differences 0.5 and -2, of which k2 makes 0.125 and 2.
    batch = replace(two_actions(), reference_log_probs=reference)
    for level, divergence in {"token": 2.125 / 2, "action": 2.125 / 2, "chunk": 2.125, "sequence": 2.125 / 2}.items():
        bounds = objective(level, reference_coefficient=0.1, reference_estimator="k2")  # type: ignore[arg-type]
        plain, _ = policy_loss(two_actions(), bounds)
        found, metrics = policy_loss(batch, bounds)
        assert (found - plain).item() == pytest.approx(0.1 * divergence)
        assert metrics.reference_kl.item() == pytest.approx(divergence)


def test_weights_scale_a_decision_in_every_term_and_no_metric() -> None:
    one, other = two_actions(), replace(two_actions(), advantages=torch.tensor([-1.0]))
    both = PolicyBatch(
        *(torch.cat([getattr(x, field.name) for x in (one, other)]) for field in fields(PolicyBatch)[:5]),
        reference_log_probs=torch.zeros(2, 2),
        weights=torch.tensor([3.0, 1.0]),
    )
    for level in LEVELS:
        bounds = objective(level, entropy_coefficient=0.1, reference_coefficient=0.2)
        parts = [policy_loss(replace(x, reference_log_probs=torch.zeros(1, 2)), bounds)[0].item() for x in (one, other)]
        loss, metrics = policy_loss(both, bounds)
        assert loss.item() == pytest.approx((3 * parts[0] + parts[1]) / 2)
        assert metrics.entropy == policy_loss(replace(both, weights=None), bounds)[1].entropy


def test_an_action_that_was_not_played_counts_at_no_level() -> None:
    batch = replace(two_actions(), valid=torch.tensor([[False, True]]))
    for level in LEVELS:
        loss, metrics = policy_loss(batch, objective(level))
        assert loss.item() == pytest.approx(-0.5 * 2)
        assert metrics.ratio_max.item() == pytest.approx(0.5)
        assert metrics.entropy.item() == pytest.approx(3)


def test_a_masked_dimension_counts_at_no_level() -> None:
    for level in LEVELS:
        loss, metrics = policy_loss(
            two_actions_as_dimensions(), objective(level, 2, dimension_mask=torch.tensor([True, False]))
        )
        assert loss.item() == pytest.approx(-1.3 * 2)
        assert metrics.entropy.item() == pytest.approx(1)


def two_actions_as_dimensions() -> PolicyBatch:
    return replace(two_actions(), valid=torch.tensor([[True]]))


def test_entropy_bonus_lowers_the_loss_and_reaches_the_entropy() -> None:
    entropy = torch.tensor([[1.0, 3.0]], requires_grad=True)
    batch = replace(two_actions(), entropy=entropy)
    plain, _ = policy_loss(batch, objective("action"))
    with_bonus, _ = policy_loss(batch, objective("action", entropy_coefficient=0.1))
    assert (plain - with_bonus).item() == pytest.approx(0.1 * 2)
    with_bonus.backward()
    assert_close(entropy.grad, torch.full((1, 2), -0.1 / 2))


@pytest.mark.parametrize("level", LEVELS)
def test_everything_masked_is_0_with_zero_gradient(level: Level) -> None:
    log_probs = torch.full((2, 4), -torch.inf, requires_grad=True)
    batch = PolicyBatch(
        log_probs=log_probs,
        old_log_probs=torch.full((2, 4), -torch.inf),
        entropy=torch.full((2, 4), torch.nan),
        advantages=torch.full((2,), torch.nan),
        valid=torch.zeros(2, 2, dtype=torch.bool),
    )
    loss, metrics = policy_loss(batch, objective(level, 2, entropy_coefficient=0.1, dual_clip=3.0))
    loss.backward()
    assert loss == 0
    assert_close(log_probs.grad, torch.zeros(2, 4))
    found = {field.name: getattr(metrics, field.name).item() for field in fields(metrics)}
    assert found.pop("ratio_min") == inf
    assert set(found.values()) == {0}


def test_garbage_behind_the_mask_does_not_reach_the_gradient() -> None:
    log_probs = torch.tensor([[0.1, -torch.inf]], requires_grad=True)
    batch = PolicyBatch(
        log_probs, torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[2.0, torch.nan]]), torch.tensor([[True, False]])
    )
    loss, _ = policy_loss(batch, objective())
    loss.backward()
    assert_close(log_probs.grad, torch.tensor([[-exp(0.1) * 2, 0.0]]))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [-1000.0, 1000.0])
def test_huge_log_ratios_stay_finite(advantage: float, gap: float) -> None:
    log_probs = torch.tensor([[gap]], requires_grad=True)
    batch = PolicyBatch(
        log_probs, torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([advantage]), torch.tensor([[True]])
    )
    loss, metrics = policy_loss(batch, objective())
    loss.backward()
    assert log_probs.grad is not None
    assert torch.isfinite(torch.stack([loss, log_probs.grad[0, 0], metrics.kl, metrics.ratio_max])).all()


@pytest.mark.parametrize(
    ("value", "old", "wanted", "loss", "blocked"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, False),  # within the clip
        (1.5, 1.0, 2.0, 0.5 * 0.8**2, True),  # moved towards the return beyond 0.2: held at 1.2
        (0.5, 1.0, 2.0, 0.5 * 1.5**2, False),  # moved away: the larger, unclipped error counts
        (1.5, 1.0, 1.0, 0.5 * 0.5**2, False),
        (-4.0, -4.0, 2.0, 3.0 * (6.0 - 1.5), False),  # beyond huber_delta 3: delta (|e| - delta / 2)
        (2.0, 1.0, 10.0, 3.0 * (8.8 - 1.5), True),  # both: |1.2 - 10| = 8.8
    ],
)
def test_value_loss_clips_and_is_linear_far_off(
    value: float, old: float, wanted: float, loss: float, blocked: bool
) -> None:
    values = torch.tensor([value], requires_grad=True)
    batch = ValueBatch(values, torch.tensor([old]), torch.tensor([wanted]), torch.tensor([True]))
    found, metrics = value_loss(batch, clip=0.2, huber_delta=3.0)
    assert found.item() == pytest.approx(loss)
    assert metrics.error.item() == pytest.approx(abs(value - wanted))
    assert metrics.clip_share == float(blocked)
    found.backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(0 if blocked else max(-3.0, min(3.0, value - wanted)))


def test_infinite_bounds_leave_half_the_squared_error() -> None:
    values = torch.tensor([[1.0, 7.0]], requires_grad=True)
    batch = ValueBatch(values, torch.zeros(1, 2), torch.tensor([[2.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool))
    loss, _ = value_loss(batch, clip=float("inf"), huber_delta=float("inf"))
    assert loss.item() == pytest.approx((0.5 * 1**2 + 0.5 * 4**2) / 2)
    loss.backward()
    assert_close(values.grad, torch.tensor([[-1.0 / 2, 4.0 / 2]]))


def test_value_loss_of_nothing_is_0_with_zero_gradient() -> None:
    values = torch.full((3,), torch.nan, requires_grad=True)
    batch = ValueBatch(values, torch.full((3,), torch.inf), torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    loss, metrics = value_loss(batch, clip=0.2, huber_delta=1.0)
    loss.backward()
    assert loss == metrics.error == metrics.clip_share == 0
    assert_close(values.grad, torch.zeros(3))


def test_value_shapes_that_would_broadcast_are_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"^returns has shape \(3,\)"):
        value_loss(ValueBatch(x, x, torch.zeros(3), x.bool()), clip=0.2, huber_delta=1.0)


@st.composite
def policy_batches(draw: st.DrawFn) -> tuple[PolicyBatch, PolicyObjective]:
    decisions, chunk, dims = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    level: Level = draw(st.sampled_from(LEVELS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = normal(decisions, chunk * dims)
    fine = level not in ("chunk", "sequence") and draw(st.booleans())
    batch = PolicyBatch(
        log_probs=old + 0.4 * normal(decisions, chunk * dims),
        old_log_probs=old,
        entropy=normal(decisions, chunk * dims).abs(),
        advantages=normal(decisions, chunk) if fine else normal(decisions),
        valid=torch.rand(decisions, chunk, generator=generator) < 0.7,
        proximal_log_probs=old + 0.3 * normal(decisions, chunk * dims) if draw(st.booleans()) else None,
        reference_log_probs=old + 0.5 * normal(decisions, chunk * dims) if draw(st.booleans()) else None,
        weights=normal(decisions).abs() if draw(st.booleans()) else None,
    )
    mask = torch.rand(dims, generator=generator) < 0.8 if draw(st.booleans()) else None
    dual = draw(st.sampled_from([None, 1.2]))
    bounds = objective(level, dims, dimension_mask=mask, dual_clip=dual, entropy_coefficient=0.1)
    estimator = draw(st.sampled_from(["k1", "k2", "k3"]))
    return batch, replace(bounds, reference_coefficient=0.3, reference_estimator=estimator)


def take(batch: PolicyBatch, rows: slice | list[int]) -> PolicyBatch:
    parts = (getattr(batch, field.name) for field in fields(batch))
    return PolicyBatch(*(None if part is None else part[rows] for part in parts))


def gradient_of(batch: PolicyBatch, bounds: PolicyObjective, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and metrics of a minibatch in micro-batches of `size`."""
    log_probs = batch.log_probs.clone().requires_grad_()
    batch = replace(batch, log_probs=log_probs)
    total = bounds.entries(batch.valid).sum()
    parts = [
        policy_loss(take(batch, slice(start, start + size)), bounds, total)
        for start in range(0, len(batch.valid), size)
    ]
    loss, metrics = parts[0]
    for more_loss, more_metrics in parts[1:]:
        loss, metrics = loss + more_loss, metrics + more_metrics
    loss.backward()
    assert log_probs.grad is not None
    return loss.detach(), log_probs.grad, torch.stack([getattr(metrics, field.name) for field in fields(metrics)])


@settings(deadline=None, max_examples=80)
@given(policy_batches(), st.integers(1, 6))
def test_micro_batches_sum_to_the_minibatch(case: tuple[PolicyBatch, PolicyObjective], size: int) -> None:
    whole = gradient_of(*case, size=len(case[0].valid))
    assert_close(gradient_of(*case, size=size), whole)
    loss, _ = policy_loss(*case)
    assert_close(loss, whole[0])


@settings(deadline=None, max_examples=50)
@given(policy_batches(), st.integers(1, 4), st.integers(0, 2**31))
def test_ranks_sum_to_the_minibatch(case: tuple[PolicyBatch, PolicyObjective], ranks: int, seed: int) -> None:
    """As if sharded: the decisions of a minibatch over ranks, unequal and perhaps without any, each rank's loss divided
    by the valid entries of all ranks; gradients are then summed.
    """
    batch, bounds = case
    whole = gradient_of(batch, bounds, size=len(batch.valid))
    rank_of = torch.randint(ranks, (len(batch.valid),), generator=torch.Generator().manual_seed(seed))
    total = sum(bounds.entries(batch.valid[rank_of == rank]).sum() for rank in range(ranks))
    gradient, loss = torch.zeros_like(batch.log_probs), torch.zeros(())
    for rank in range(ranks):
        rows = (rank_of == rank).nonzero()[:, 0].tolist()
        part = take(batch, rows)
        log_probs = part.log_probs.clone().requires_grad_()
        part_loss, _ = policy_loss(replace(part, log_probs=log_probs), bounds, total)
        part_loss.backward()
        assert log_probs.grad is not None
        gradient[rows] = log_probs.grad
        loss = loss + part_loss.detach()
    assert_close(gradient, whole[1])
    assert_close(loss, whole[0])


@settings(deadline=None, max_examples=50)
@given(policy_batches(), st.data())
def test_order_of_decisions_and_masked_decisions_do_not_matter(
    case: tuple[PolicyBatch, PolicyObjective], data: st.DataObject
) -> None:
    batch, bounds = case
    loss, metrics = policy_loss(batch, bounds)
    rows = data.draw(st.permutations(range(len(batch.valid))))
    extra = take(batch, rows + rows[:2])
    valid = extra.valid.clone()
    valid[len(rows) :] = False
    found_loss, found_metrics = policy_loss(replace(extra, valid=valid), bounds)
    assert_close(found_loss, loss)
    assert_close(found_metrics.kl, metrics.kl)
    assert_close(found_metrics.ratio_max, metrics.ratio_max)


@settings(deadline=None, max_examples=50)
@given(policy_batches())
def test_approximate_kl_is_never_negative(case: tuple[PolicyBatch, PolicyObjective]) -> None:
    batch, bounds = case
    for scale in (1.0, 1e-7, 0.0):
        near = (batch.old_log_probs + scale * (batch.log_probs - batch.old_log_probs)).float()
        _, metrics = policy_loss(replace(batch, log_probs=near, old_log_probs=batch.old_log_probs.float()), bounds)
        assert metrics.kl >= 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_levels_agree_for_one_action_of_one_dimension(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, entropy = torch.randn(3, 5, 1, generator=generator).unbind()
    batch = PolicyBatch(new, old, entropy, torch.randn(5, generator=generator), torch.rand(5, 1) < 0.7)
    results = [policy_loss(batch, objective(level)) for level in LEVELS]
    for loss, metrics in results[1:]:
        assert_close(loss, results[0][0])
        assert metrics == results[0][1]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**31))
def test_value_micro_batches_sum_to_the_minibatch(decisions: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, old, returns = torch.randn(3, decisions, 2, generator=generator, dtype=torch.float64).unbind()
    valid = torch.rand(decisions, 2, generator=generator) < 0.7
    whole, metrics = value_loss(ValueBatch(values, old, returns, valid), clip=0.2, huber_delta=0.7)
    parts = [
        value_loss(ValueBatch(*(x[start : start + size] for x in (values, old, returns, valid))), 0.2, 0.7, valid.sum())
        for start in range(0, decisions, size)
    ]
    assert_close(sum(loss for loss, _ in parts), whole)
    assert_close(sum(m.error for _, m in parts), metrics.error)
    assert_close(sum(m.clip_share for _, m in parts), metrics.clip_share)
