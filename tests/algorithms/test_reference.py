"""The divergence from a reference, against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from treadle.algorithms.reference import adapt_coefficient, estimate_kl

LOGITS = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64)
REFERENCE = torch.tensor([0.0, 0.5, 0.1], dtype=torch.float64).log_softmax(0)


def test_values() -> None:
    p, ref = torch.tensor([-1.0, -3.0]), torch.tensor([-1.5, -1.0])
    # Differences 0.5 and -2.
    assert_close(estimate_kl(p, ref, "k1"), torch.tensor([0.5, -2.0]))
    assert_close(estimate_kl(p, ref, "k2"), torch.tensor([0.125, 2.0]))
    e = torch.tensor([-0.5, 2.0]).exp()
    assert_close(estimate_kl(p, ref, "k3"), e - 1 + torch.tensor([0.5, -2.0]))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator) -> None:
    log_p = LOGITS.log_softmax(0)
    exact = (log_p.exp() * (log_p - REFERENCE)).sum()
    assert_close((log_p.exp() * estimate_kl(log_p, REFERENCE, estimator)).sum(), exact)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_expected_gradient_is_that_of_the_divergence(estimator) -> None:
    """The expectation is over samples, whose own probability the estimate's gradient does not see."""
    logits = LOGITS.clone().requires_grad_()
    log_p = logits.log_softmax(0)
    (log_p.exp() * (log_p - REFERENCE)).sum().backward()
    exact, logits.grad = logits.grad, None
    log_p = logits.log_softmax(0)
    (log_p.exp().detach() * estimate_kl(log_p, REFERENCE, estimator)).sum().backward()
    assert_close(logits.grad, exact)


def test_k3_is_cut_at_10_and_does_not_pull_beyond() -> None:
    """k3 of -15 is 3.3e6, of -2.62 is 10.12, of 12 is 11; of -2.6 and 10.9 it is still below 10."""
    log_p = torch.tensor([-15.0, -2.62, -2.6, 10.9, 12.0], dtype=torch.float64, requires_grad=True)
    found = estimate_kl(log_p, torch.zeros_like(log_p), "k3")
    e, e_11 = math.exp(2.6), math.exp(-10.9)
    assert_close(found.detach(), torch.tensor([10, 10, e - 1 - 2.6, e_11 - 1 + 10.9, 10], dtype=torch.float64))
    found.sum().backward()
    # d k3 / d log p = 1 - exp(-d)
    assert_close(log_p.grad, torch.tensor([0, 0, 1 - e, 1 - e_11, 0], dtype=torch.float64))


def test_huge_differences_stay_finite() -> None:
    log_p = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = estimate_kl(log_p, torch.zeros(2), "k3").sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(log_p.grad).all()  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.floats(-15, 15), st.floats(-15, 15))
def test_k2_and_k3_are_never_negative(p: float, ref: float) -> None:
    for estimator in ("k2", "k3"):
        assert estimate_kl(torch.tensor(p), torch.tensor(ref), estimator) >= 0  # type: ignore[arg-type]


def test_the_coefficient_follows_its_target() -> None:
    assert adapt_coefficient(1.0, kl=0.1, target=0.1) == 1
    assert adapt_coefficient(1.0, kl=0.11, target=0.1) == pytest.approx(1 + 0.1 * 0.1)
    assert adapt_coefficient(2.0, kl=9.0, target=0.1) == pytest.approx(2 * (1 + 0.1 * 0.2))
    assert adapt_coefficient(2.0, kl=-9.0, target=0.1) == pytest.approx(2 * (1 - 0.1 * 0.2))
