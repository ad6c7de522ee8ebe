"""The loss of a critic.

Shapes: B decisions, V values of each, one per action or one. Give each micro-batch the minibatch's number of valid
entries as `weight_total`, and their losses and gradients sum to the minibatch's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from treadle.algorithms.levels import masked_mean


@dataclass(frozen=True, slots=True)
class ValueBatch:
    """What the value loss reads; all of one shape, [B, V] or any."""

    values: Tensor
    """Of the critic in training, with gradient."""
    old_values: Tensor
    """Of the critic at the rollout."""
    returns: Tensor
    valid: Tensor
    """bool."""


def value_loss(
    batch: ValueBatch, clip: float, huber_delta: float, weight_total: float | Tensor | None = None
) -> Tensor:
    """Clipped value loss (Engstrom et al. 2020, "Implementation Matters", section 3) with Huber's error.

        L = mean max(h(V - R), h(clip(V, V_old - clip, V_old + clip) - R))
        h(e) = e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond (Huber 1964)

    Args:
        batch: Values of one micro-batch.
        clip: How far values count as moved from the rollout's; inf does not clip.
        huber_delta: Error beyond which the loss is linear; inf is half the squared error.
        weight_total: Valid entries of the whole minibatch, by default of `batch`.

    Raises:
        ValueError: Shapes differ.
    """
    for name, x in {"old_values": batch.old_values, "returns": batch.returns, "valid": batch.valid}.items():
        if x.shape != batch.values.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, values {tuple(batch.values.shape)}")
    values, old, returns = (torch.where(batch.valid, x, 0) for x in (batch.values, batch.old_values, batch.returns))

    plain = _huber(values - returns, huber_delta)
    moved = _huber(old + (values - old).clamp(-clip, clip) - returns, huber_delta)
    return masked_mean(torch.maximum(plain, moved), batch.valid, weight_total)


def _huber(error: Tensor, delta: float) -> Tensor:
    size = error.abs()
    # d (|e| - d / 2) with d = min(|e|, delta) is both branches, and has no inf - inf for delta = inf.
    inside = size.clamp(max=delta)
    return inside * (size - inside / 2)
