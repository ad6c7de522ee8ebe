"""Granularity: the log-probs of a decision joined to entries, each covered by one importance ratio.

Shapes: B decisions, C actions of a chunk, P positions of a decision's log-probs (C, or 1 where a policy has one set for
the whole chunk), E log-probs per position (a token or dimension each). An *entry* is a token [B, P, E], an action
[B, P], or a chunk or sequence [B].
"""

from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "action", "chunk", "sequence"]
"""What one importance ratio covers. A sequence is all tokens of a decision, as a chunk is, and its ratio is their
geometric mean (Zheng et al. 2025, "Group Sequence Policy Optimization"), which does not grow with their number."""


def join_log_probs(
    log_probs: Tensor,
    level: Level,
    dimension_mask: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Log-probs (or entropies) [B, P, E] joined to entries: summed, or their mean for a sequence.

    Masked dimensions, and with `valid` [B, C] actions that were not played, contribute 0. At chunk level the ratio is
    then that of the actions that were played, which is exact for autoregressive and for parallel decoding.
    """
    if log_probs.dim() != 3:
        raise ValueError(f"log_probs must be [B, P, E], found shape {tuple(log_probs.shape)}")
    joined, (positions, dimensions) = log_probs, log_probs.shape[1:]
    if dimension_mask is not None:
        joined = torch.where(dimension_mask, joined, 0)
    if valid is not None:
        joined = torch.where(valid_positions(valid, positions)[..., None], joined, 0)
    if level == "token":
        return joined
    if level == "action":
        return joined.sum(-1)
    total = joined.sum((-2, -1))
    if level == "chunk":
        return total
    played = joined.new_ones(joined.shape[:2], dtype=torch.bool) if valid is None else valid
    count = valid_entries(played, "token", (positions, dimensions), dimension_mask).sum((-2, -1))
    return total / count.clamp(min=1)


def valid_positions(valid: Tensor, positions: int) -> Tensor:
    """Actions played [B, C] as positions [B, P]; one position for all counts if any action was played."""
    if valid.shape[-1] == positions:
        return valid
    if positions != 1:
        raise ValueError(f"{positions} positions of log-probs for {valid.shape[-1]} actions: allowed are as many, or 1")
    return valid.any(-1, keepdim=True)


def valid_entries(
    valid: Tensor, level: Level, entries: tuple[int, int], dimension_mask: Tensor | None = None
) -> Tensor:
    """Actions played [B, C] as a bool mask of entries: [B, P, E], [B, P] or [B], with `entries` (P, E). A chunk or
    sequence counts if any action of it was played; with no dimension left in the mask, nothing counts.
    """
    dimensions = valid.new_ones(entries[1]) if dimension_mask is None else dimension_mask
    tokens = valid_positions(valid, entries[0])[..., None] & dimensions
    if level == "token":
        return tokens
    return tokens.any(-1) if level == "action" else tokens.flatten(1).any(-1)


def expand_advantages(advantages: Tensor, level: Level) -> Tensor:
    """Advantages [B, C] (per action) or [B] (per chunk) to a shape that broadcasts with entries of the given level.

    Raises:
        ValueError: An advantage per action with a ratio per chunk or sequence: one ratio has one gradient weight, so
            it cannot credit the actions of the chunk apart.
    """
    if advantages.dim() not in (1, 2):
        raise ValueError(f"advantages must be [B, C] or [B], found shape {tuple(advantages.shape)}")
    if level in ("chunk", "sequence"):
        if advantages.dim() == 2:
            raise ValueError(
                f"advantages {tuple(advantages.shape)} are per action and the ratio per {level}: one ratio cannot "
                "carry an advantage per action; use advantages per chunk, or a ratio per action or token"
            )
        return advantages
    per_action = advantages if advantages.dim() == 2 else advantages[:, None]
    return per_action[..., None] if level == "token" else per_action


def expand_weights(weights: Tensor, level: Level) -> Tensor:
    """Weights [B] of decisions to a shape that broadcasts with entries of the given level."""
    return weights[(..., *[None] * {"token": 2, "action": 1, "chunk": 0, "sequence": 0}[level])]


def masked_mean(x: Tensor, mask: Tensor, weight_total: float | Tensor | None = None) -> Tensor:
    """Sum of x over the mask, divided by the mask's count or by `weight_total`; a scalar, 0 where the divisor is 0.

    Args:
        x: Any shape.
        mask: bool, the shape of x.
        weight_total: Number of valid entries of the minibatch that x is a part of.
    """
    total = torch.as_tensor(mask.sum() if weight_total is None else weight_total, device=x.device)
    return torch.where(mask, x, 0).sum() / torch.where(total > 0, total, 1)
