"""What the policy loss does not depend on."""

from dataclasses import fields, replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from loss_samples import LEVELS, objective
from treadle.algorithms.levels import Level
from treadle.algorithms.losses import PolicyBatch, PolicyMetrics, PolicyObjective, policy_loss


@st.composite
def policy_batches(draw: st.DrawFn) -> tuple[PolicyBatch, PolicyObjective]:
    decisions, chunk, dims = draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    level: Level = draw(st.sampled_from(LEVELS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # One set of log-probs for each action, or for the decision; the latter has no advantage per action.
    positions = draw(st.sampled_from([chunk, 1]))
    old = normal(decisions, positions, dims)
    fine = positions == chunk and level not in ("chunk", "sequence") and draw(st.booleans())
    batch = PolicyBatch(
        log_probs=old + 0.4 * normal(decisions, positions, dims),
        old_log_probs=old,
        entropy=normal(decisions, positions, dims).abs(),
        advantages=normal(decisions, chunk) if fine else normal(decisions),
        valid=torch.rand(decisions, chunk, generator=generator) < 0.7,
        proximal_log_probs=old + 0.3 * normal(decisions, positions, dims) if draw(st.booleans()) else None,
        reference_log_probs=old + 0.5 * normal(decisions, positions, dims) if draw(st.booleans()) else None,
        weights=normal(decisions).abs() if draw(st.booleans()) else None,
    )
    mask = torch.rand(dims, generator=generator) < 0.8 if draw(st.booleans()) else None
    dual = draw(st.sampled_from([None, 1.2]))
    bounds = objective(level, (positions, dims), dimension_mask=mask, dual_clip=dual, entropy_coefficient=0.1)
    estimator = draw(st.sampled_from(["k1", "k2", "k3"]))
    return batch, replace(bounds, reference_coefficient=0.3, reference_estimator=estimator)


def take(batch: PolicyBatch, rows: slice | list[int]) -> PolicyBatch:
    parts = (getattr(batch, field.name) for field in fields(batch))
    return PolicyBatch(*(None if part is None else part[rows] for part in parts))


def gradient_of(batch: PolicyBatch, bounds: PolicyObjective, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and metrics of a minibatch in micro-batches of `size`."""
    log_probs = batch.log_probs.clone().requires_grad_()
    batch = replace(batch, log_probs=log_probs)
    total = bounds.valid_entries(batch.valid).sum()
    parts = [
        policy_loss(take(batch, slice(start, start + size)), bounds, total)
        for start in range(0, len(batch.valid), size)
    ]
    loss = torch.stack([loss for loss, _ in parts]).sum()
    loss.backward()
    joins = {"ratio_min": Tensor.amin, "ratio_max": Tensor.amax, "ratio_max_negative": Tensor.amax}
    names = [field.name for field in fields(PolicyMetrics)]
    columns = {name: torch.stack([getattr(metrics, name) for _, metrics in parts]) for name in names}
    assert log_probs.grad is not None
    return (
        loss.detach(),
        log_probs.grad,
        torch.stack([joins.get(name, Tensor.sum)(column) for name, column in columns.items()]),
    )


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
    total = sum(bounds.valid_entries(batch.valid[rank_of == rank]).sum() for rank in range(ranks))
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
    new, old, entropy = torch.randn(3, 5, 1, 1, generator=generator).unbind()
    batch = PolicyBatch(new, old, entropy, torch.randn(5, generator=generator), torch.rand(5, 1) < 0.7)
    results = [policy_loss(batch, objective(level)) for level in LEVELS]
    for loss, metrics in results[1:]:
        assert_close(loss, results[0][0])
        assert metrics == results[0][1]
