"""The value loss, against arithmetic that is written out, and in micro-batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from treadle.algorithms.value_loss import ValueBatch, value_loss


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
    found = value_loss(batch, clip=0.2, huber_delta=3.0)
    assert found.item() == pytest.approx(loss)
    found.backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(0 if blocked else max(-3.0, min(3.0, value - wanted)))


def test_infinite_bounds_leave_half_the_squared_error() -> None:
    values = torch.tensor([[1.0, 7.0]], requires_grad=True)
    batch = ValueBatch(values, torch.zeros(1, 2), torch.tensor([[2.0, 3.0]]), torch.ones(1, 2, dtype=torch.bool))
    loss = value_loss(batch, clip=float("inf"), huber_delta=float("inf"))
    assert loss.item() == pytest.approx((0.5 * 1**2 + 0.5 * 4**2) / 2)
    loss.backward()
    assert_close(values.grad, torch.tensor([[-1.0 / 2, 4.0 / 2]]))


def test_value_loss_of_nothing_is_0_with_zero_gradient() -> None:
    values = torch.full((3,), torch.nan, requires_grad=True)
    batch = ValueBatch(values, torch.full((3,), torch.inf), torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    loss = value_loss(batch, clip=0.2, huber_delta=1.0)
    loss.backward()
    assert loss == 0
    assert_close(values.grad, torch.zeros(3))


def test_value_shapes_that_would_broadcast_are_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"^returns has shape \(3,\)"):
        value_loss(ValueBatch(x, x, torch.zeros(3), x.bool()), clip=0.2, huber_delta=1.0)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 2**31))
def test_value_micro_batches_sum_to_the_minibatch(decisions: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, old, returns = torch.randn(3, decisions, 2, generator=generator, dtype=torch.float64).unbind()
    valid = torch.rand(decisions, 2, generator=generator) < 0.7
    whole = value_loss(ValueBatch(values, old, returns, valid), clip=0.2, huber_delta=0.7)
    parts = [
        value_loss(ValueBatch(*(x[start : start + size] for x in (values, old, returns, valid))), 0.2, 0.7, valid.sum())
        for start in range(0, decisions, size)
    ]
    assert_close(sum(parts), whole)
