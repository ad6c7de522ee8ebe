"""The policy loss, against arithmetic that is written out."""

from dataclasses import fields, replace
from math import exp, inf, log

import pytest
import torch
from torch.testing import assert_close

from loss_samples import LEVELS, PLAYED, SECOND_DIMENSION, TOKENS, objective, one_token
from treadle.algorithms.levels import Level, expand_advantages, join_log_probs
from treadle.algorithms.losses import PolicyBatch, policy_loss


def test_advantage_finer_than_the_ratio_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="one ratio cannot carry an advantage per action"):
        expand_advantages(torch.ones(5, 3), "chunk")
    batch = PolicyBatch(TOKENS, TOKENS, TOKENS, torch.ones(2, 2), PLAYED)
    with pytest.raises(ValueError, match="use advantages per chunk"):
        policy_loss(batch, objective("chunk", (2, 2)))


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


def test_the_largest_ratio_of_a_negative_advantage() -> None:
    """Ratios 9 of a good entry, 3 and 0.5 of bad ones, and 20 of one that was not played."""
    ratios = torch.tensor([9.0, 3.0, 0.5, 20.0])[:, None, None]
    zero = torch.zeros_like(ratios)
    played = torch.tensor([True, True, True, False])[:, None]
    batch = PolicyBatch(ratios.log(), zero, zero, torch.tensor([1.0, -1.0, -2.0, -1.0])[:, None], played)
    metrics = policy_loss(batch, objective(entries=(1, 1)))[1]
    assert (metrics.ratio_max.item(), metrics.ratio_max_negative.item()) == pytest.approx((9.0, 3.0))
    assert policy_loss(replace(batch, advantages=torch.ones(4, 1)), objective())[1].ratio_max_negative == 0


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


TWO = (2, 1)
"""P and E of two actions with one dimension."""


def two_actions() -> PolicyBatch:
    """One decision of two actions with one dimension; ratios 1.5 and 0.5, joint 0.75."""
    return PolicyBatch(
        log_probs=torch.tensor([[[log(1.5)], [log(0.5)]]]),
        old_log_probs=torch.zeros(1, 2, 1),
        entropy=torch.tensor([[[1.0], [3.0]]]),
        advantages=torch.tensor([2.0]),
        valid=torch.tensor([[True, True]]),
    )


def test_action_level_clips_each_action_and_chunk_level_their_product() -> None:
    loss, metrics = policy_loss(two_actions(), objective("action", TWO))
    assert loss.item() == pytest.approx(-(1.3 * 2 + 0.5 * 2) / 2)
    assert metrics.clip_share == 0.5
    assert metrics.ratio_mean.item() == pytest.approx((1.5 + 0.5) / 2)
    assert metrics.ratio_max.item() == pytest.approx(1.5)
    assert metrics.entropy.item() == pytest.approx((1 + 3) / 2)
    assert metrics.kl.item() == pytest.approx(((1.5 - 1 - log(1.5)) + (0.5 - 1 - log(0.5))) / 2)

    loss, metrics = policy_loss(two_actions(), objective("chunk", TWO))
    assert loss.item() == pytest.approx(-0.75 * 2)
    assert metrics.ratio_mean.item() == metrics.ratio_max.item() == pytest.approx(0.75)
    assert metrics.entropy.item() == pytest.approx(1 + 3)
    assert metrics.kl.item() == pytest.approx(0.75 - 1 - log(0.75))


def test_a_sequences_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    loss, metrics = policy_loss(two_actions(), objective("sequence", TWO))
    assert metrics.ratio_mean.item() == pytest.approx(0.75**0.5)
    assert loss.item() == pytest.approx(-(0.75**0.5) * 2)
    assert metrics.entropy.item() == pytest.approx((1 + 3) / 2)
    played = torch.tensor([[True, False]])
    assert join_log_probs(TOKENS[:1], "sequence", valid=played).tolist() == [(1 + 2) / 2]
    assert join_log_probs(TOKENS, "sequence", SECOND_DIMENSION, PLAYED).tolist() == [2, (6 + 8) / 2]
    assert join_log_probs(TOKENS, "sequence").tolist() == [10 / 4, 26 / 4]


def one_set(valid: list[list[bool]], advantages: list[float]) -> PolicyBatch:
    """Decisions of three actions that have one set of two log-probs each; ratios 1.5 and 0.5, joint 0.75."""
    old = torch.zeros(len(valid), 1, 2)
    new = (old + torch.tensor([log(1.5), log(0.5)])).requires_grad_()
    return PolicyBatch(new, old, old + torch.tensor([1.0, 3.0]), torch.tensor(advantages), torch.tensor(valid))


@pytest.mark.parametrize(
    ("level", "loss", "entropy", "slopes"),
    [
        ("token", -(1.3 * 2 + 0.5 * 2) / 2, (1 + 3) / 2, [0, -0.5 * 2 / 2]),  # the first is clipped
        ("action", -0.75 * 2, 1 + 3, [-0.75 * 2] * 2),
        ("chunk", -0.75 * 2, 1 + 3, [-0.75 * 2] * 2),
        ("sequence", -(0.75**0.5) * 2, (1 + 3) / 2, [-(0.75**0.5) * 2 / 2] * 2),
    ],
)
def test_one_set_of_log_probs_counts_once_where_any_action_was_played(
    level: Level, loss: float, entropy: float, slopes: list[float]
) -> None:
    """Whether one or all three actions of a decision were played; the second decision was not played at all."""
    for first in ([True, False, False], [True, True, True]):
        batch = one_set([first, [False] * 3], [2.0, 100.0])
        found, metrics = policy_loss(batch, objective(level, (1, 2)))
        assert found.item() == pytest.approx(loss)
        assert metrics.entropy.item() == pytest.approx(entropy)
        found.backward()
        assert_close(batch.log_probs.grad, torch.tensor([[slopes], [[0, 0]]], dtype=torch.float32))


def test_one_set_of_log_probs_cannot_carry_an_advantage_per_action() -> None:
    batch = replace(one_set([[True] * 3], [0.0]), advantages=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"advantages \(1, 3\) are per action.* have 1 position.*per chunk"):
        policy_loss(batch, objective("token", (1, 2)))


def test_log_probs_that_are_no_entries_of_the_policy_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log_probs has shape \(1, 2, 1\).* \(1, 2\)"):
        policy_loss(two_actions(), objective("token", (1, 2)))
    batch = replace(two_actions(), old_log_probs=torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match=r"old_log_probs has shape \(1, 1, 1\).* \(2, 1\)"):
        policy_loss(batch, objective("token", TWO))
    with pytest.raises(ValueError, match=r"2 positions of log-probs for 3 actions"):
        policy_loss(replace(two_actions(), valid=torch.ones(1, 3, dtype=torch.bool)), objective("token", TWO))


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
        policy_loss(replace(batch, proximal_log_probs=x), objective("action", TWO)) for x in (None, batch.old_log_probs)
    )
    assert plain == fresh


def test_the_reference_is_penalised_token_by_token_and_joined_as_log_probs() -> None:
    reference = torch.tensor([[[log(1.5) - 0.5], [log(0.5) + 2]]])
    # Differences 0.5 and -2, of which k2 makes 0.125 and 2.
    batch = replace(two_actions(), reference_log_probs=reference)
    for level, divergence in {"token": 2.125 / 2, "action": 2.125 / 2, "chunk": 2.125, "sequence": 2.125 / 2}.items():
        bounds = objective(level, TWO, reference_coefficient=0.1, reference_estimator="k2")  # type: ignore[arg-type]
        plain, _ = policy_loss(two_actions(), bounds)
        found, metrics = policy_loss(batch, bounds)
        assert (found - plain).item() == pytest.approx(0.1 * divergence)
        assert metrics.reference_kl.item() == pytest.approx(divergence)


def test_the_divergence_is_of_the_policy_from_its_reference() -> None:
    """Of k3, which tells the two directions apart: exp(-d) - 1 + d of d = 0.5 and -2, with slopes 1 - exp(-d)."""
    new = two_actions().log_probs.clone().requires_grad_()
    batch = replace(
        two_actions(),
        log_probs=new,
        advantages=torch.tensor([0.0]),
        reference_log_probs=new.detach() - torch.tensor([[[0.5], [-2.0]]]),
    )
    loss, metrics = policy_loss(batch, objective("action", TWO, reference_coefficient=0.1))
    assert metrics.reference_kl.item() == pytest.approx((exp(-0.5) - 0.5 + exp(2) - 3) / 2)
    assert loss.item() == pytest.approx(0.1 * metrics.reference_kl.item())
    loss.backward()
    assert_close(new.grad, 0.1 * torch.tensor([[[1 - exp(-0.5)], [1 - exp(2)]]]) / 2)


def test_weights_scale_a_decision_in_every_term_and_no_metric() -> None:
    one, other = two_actions(), replace(two_actions(), advantages=torch.tensor([-1.0]))
    both = PolicyBatch(
        *(torch.cat([getattr(x, field.name) for x in (one, other)]) for field in fields(PolicyBatch)[:5]),
        reference_log_probs=torch.zeros(2, 2, 1),
        weights=torch.tensor([3.0, 1.0]),
    )
    for level in LEVELS:
        bounds = objective(level, TWO, entropy_coefficient=0.1, reference_coefficient=0.2)
        apart = [replace(x, reference_log_probs=torch.zeros(1, 2, 1)) for x in (one, other)]
        parts = [policy_loss(x, bounds)[0].item() for x in apart]
        loss, metrics = policy_loss(both, bounds)
        assert loss.item() == pytest.approx((3 * parts[0] + parts[1]) / 2)
        assert metrics.entropy == policy_loss(replace(both, weights=None), bounds)[1].entropy


def test_an_action_that_was_not_played_counts_at_no_level() -> None:
    batch = replace(two_actions(), valid=torch.tensor([[False, True]]))
    for level in LEVELS:
        loss, metrics = policy_loss(batch, objective(level, TWO))
        assert loss.item() == pytest.approx(-0.5 * 2)
        assert metrics.ratio_max.item() == pytest.approx(0.5)
        assert metrics.entropy.item() == pytest.approx(3)


def test_a_masked_dimension_counts_at_no_level() -> None:
    for level in LEVELS:
        loss, metrics = policy_loss(
            two_actions_as_dimensions(), objective(level, (1, 2), dimension_mask=torch.tensor([True, False]))
        )
        assert loss.item() == pytest.approx(-1.3 * 2)
        assert metrics.entropy.item() == pytest.approx(1)


def two_actions_as_dimensions() -> PolicyBatch:
    one = {name: getattr(two_actions(), name).mT for name in ("log_probs", "old_log_probs", "entropy")}
    return replace(two_actions(), **one, valid=torch.tensor([[True]]))


def test_entropy_bonus_lowers_the_loss_and_reaches_the_entropy() -> None:
    entropy = torch.tensor([[[1.0], [3.0]]], requires_grad=True)
    batch = replace(two_actions(), entropy=entropy)
    plain, _ = policy_loss(batch, objective("action", TWO))
    with_bonus, _ = policy_loss(batch, objective("action", TWO, entropy_coefficient=0.1))
    assert (plain - with_bonus).item() == pytest.approx(0.1 * 2)
    with_bonus.backward()
    assert_close(entropy.grad, torch.full((1, 2, 1), -0.1 / 2))


@pytest.mark.parametrize("level", LEVELS)
def test_everything_masked_is_0_with_zero_gradient(level: Level) -> None:
    log_probs = torch.full((2, 2, 2), -torch.inf, requires_grad=True)
    batch = PolicyBatch(
        log_probs=log_probs,
        old_log_probs=torch.full((2, 2, 2), -torch.inf),
        entropy=torch.full((2, 2, 2), torch.nan),
        advantages=torch.full((2,), torch.nan),
        valid=torch.zeros(2, 2, dtype=torch.bool),
    )
    loss, metrics = policy_loss(batch, objective(level, (2, 2), entropy_coefficient=0.1, dual_clip=3.0))
    loss.backward()
    assert loss == 0
    assert_close(log_probs.grad, torch.zeros(2, 2, 2))
    found = {field.name: getattr(metrics, field.name).item() for field in fields(metrics)}
    assert found.pop("ratio_min") == inf
    assert set(found.values()) == {0}


def test_garbage_behind_the_mask_does_not_reach_the_gradient() -> None:
    log_probs = torch.tensor([[[0.1], [-torch.inf]]], requires_grad=True)
    zeros, advantages = torch.zeros(1, 2, 1), torch.tensor([[2.0, torch.nan]])
    batch = PolicyBatch(log_probs, zeros, zeros, advantages, torch.tensor([[True, False]]))
    loss, _ = policy_loss(batch, objective("token", TWO))
    loss.backward()
    assert_close(log_probs.grad, torch.tensor([[[-exp(0.1) * 2], [0.0]]]))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [-1000.0, 1000.0])
def test_huge_log_ratios_stay_finite(advantage: float, gap: float) -> None:
    log_probs = torch.tensor([[[gap]]], requires_grad=True)
    zeros = torch.zeros(1, 1, 1)
    batch = PolicyBatch(log_probs, zeros, zeros, torch.tensor([advantage]), torch.tensor([[True]]))
    loss, metrics = policy_loss(batch, objective())
    loss.backward()
    assert log_probs.grad is not None
    assert torch.isfinite(torch.stack([loss, log_probs.grad[0, 0, 0], metrics.kl, metrics.ratio_max])).all()
