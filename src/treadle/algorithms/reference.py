"""Divergence from a frozen reference policy: estimates from samples, and a coefficient that holds it at a target."""

from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

_BOUND = 20.0
"""exp of more overflows half precision and soon float32."""
_K3_BOUND = 10.0
"""k3 of one token that has become impossible would be larger than a batch of others together: 3.3e6 at d = -15."""


def estimate_kl(log_probs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """KL(policy || reference) from samples of the policy, elementwise (Schulman 2020, "Approximating KL divergence").

        d = log p - log p_ref;   k1 = d;   k2 = d^2 / 2;   k3 = exp(-d) - 1 + d

    k1 is unbiased and of either sign, k2 biased and of little variance, k3 unbiased and never negative. The derivative
    of k1 is a score function, whose mean is 0 (Tang and Munos 2025, "On a few pitfalls in KL divergence gradient
    estimation"), so k1 carries the derivative of k2, which is that of the divergence.

    d is cut to [-20, 20], and k3 at 10, as in verl (Sheng et al. 2024, arXiv 2409.19256; `core_algos.kl_penalty`). The
    derivative beyond is 0, and k3 is biased there. It reaches 10 at d = -2.61 and at d = 11.

    Args:
        log_probs: any shape, with gradient.
        reference: the same shape, without.
        estimator: which.
    """
    difference = (log_probs - reference).clamp(-_BOUND, _BOUND)
    if estimator == "k3":
        return ((-difference).expm1() + difference).clamp(max=_K3_BOUND)
    half_square = difference.square() / 2
    return half_square if estimator == "k2" else half_square - half_square.detach() + difference.detach()


def adapt_coefficient(coefficient: float, kl: float, target: float, gain: float = 0.1) -> float:
    """The next coefficient of the divergence: `coefficient * (1 + gain * clip(kl / target - 1, -0.2, 0.2))` (Ziegler
    et al. 2019, "Fine-Tuning Language Models from Human Preferences").
    """
    return coefficient * (1 + gain * min(0.2, max(-0.2, kl / target - 1)))
