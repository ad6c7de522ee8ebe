"""The policy's loss.

Shapes: B decisions, C actions of a chunk, P positions of a decision's log-probs (C or 1), E log-probs per position. An
*entry* is what one importance ratio covers (`levels`): a token [B, P, E], an action [B, P], a chunk or a sequence [B].

Micro-batches: give each the minibatch's number of valid entries as `weight_total`, and their losses and gradients sum
to the minibatch's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from treadle.algorithms.levels import (
    Level,
    expand_advantages,
    expand_weights,
    join_log_probs,
    masked_mean,
    valid_entries,
)
from treadle.algorithms.reference import KLEstimator, estimate_kl

_LOG_RATIO_BOUND = 20.0
"""exp of more overflows half precision and soon float32; inf times a gradient of 0 would be NaN."""


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """What the policy loss reads of B decisions."""

    log_probs: Tensor
    """[B, P, E] float32, of the policy in training, with gradient."""
    old_log_probs: Tensor
    """[B, P, E] float32, of the policy that acted."""
    entropy: Tensor
    """[B, P, E] float32, nats, with gradient if an entropy bonus is wanted."""
    advantages: Tensor
    """[B, C] at action level, [B] at chunk level."""
    valid: Tensor
    """[B, C] bool, actions that were played."""
    proximal_log_probs: Tensor | None = None
    """[B, P, E] float32, of the policy that the ratio is clipped around, where that is not the one that acted: of data
    that is older than the policy."""
    reference_log_probs: Tensor | None = None
    """[B, P, E] float32, of the frozen reference."""
    weights: Tensor | None = None
    """[B] of decisions in all terms of the loss, not in metrics; None weighs all alike."""


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Constants of the policy loss."""

    level: Level
    """What one importance ratio covers."""
    entries: tuple[int, int]
    """(P, E)."""
    clip_low: float
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float
    """The ratio is clipped above 1 + clip_high."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    dual_clip: float | None = None
    """Bound c > 1 on the ratio's weight for negative advantages, None for no bound."""
    dimension_mask: Tensor | None = None
    """[E] bool, False for dimensions that get no gradient; None trains all."""
    stale_weight_cap: float = 2.0
    """The weight of data from an older policy is cut above this."""
    reference_coefficient: float = 0.0
    """Weight of the divergence from the reference."""
    reference_estimator: KLEstimator = "k3"
    """How it is estimated."""

    def valid_entries(self, valid: Tensor) -> Tensor:
        """`levels.valid_entries` at this level; its sum over a minibatch is the `weight_total` of the micro-batches."""
        return valid_entries(valid, self.level, self.entries, self.dimension_mask)


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """Detached scalars over the valid entries; the means are shares of `weight_total`, so that micro-batches add up."""

    kl: Tensor
    """Estimate of KL(acting policy || policy in training), never negative: k3 = (r - 1) - log r (Schulman 2020,
    "Approximating KL divergence")."""
    clip_share: Tensor
    """Share of entries whose gradient a clip removes."""
    ratio_mean: Tensor
    ratio_square: Tensor
    """Mean of the squared ratio."""
    ratio_min: Tensor
    """Infinite where nothing is valid."""
    ratio_max: Tensor
    """0 where nothing is valid."""
    ratio_max_negative: Tensor
    """Largest ratio where the advantage is negative, 0 where none is: there only a dual clip bounds the loss."""
    entropy: Tensor
    """Mean at the ratio's level."""
    reference_kl: Tensor
    """Mean divergence from the reference at the ratio's level, 0 without one."""
    stale_weight: Tensor
    """Mean weight of data from an older policy, 1 for fresh data."""


def policy_loss(
    batch: PolicyBatch, objective: PolicyObjective, weight_total: float | Tensor | None = None
) -> tuple[Tensor, PolicyMetrics]:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), as a loss, with an entropy bonus and a penalty.

        L = - mean w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
            - entropy_coefficient * mean H + reference_coefficient * mean KL(policy || reference)

    The bounds are separate as in DAPO's clip-higher (Yu et al. 2025). With dual clip the term of a negative advantage
    is at most -c A (Ye et al. 2020, "Mastering Complex Control in MOBA Games", equation 5). Log-ratios are cut to
    [-20, 20]. Nothing valid: a loss of 0 with a gradient of 0.

    With proximal log-probs the loss is that of decoupled PPO (Hilton et al. 2022, "Batch size-invariance for policy
    optimization"): r = p / p_proximal, and w = min(p_proximal / p_acting, stale_weight_cap), without gradient; else
    r = p / p_acting and w = 1. Entropy and divergence, estimated token by token, are joined to entries as log-probs.

    Args:
        batch: Decisions of one micro-batch.
        objective: Constants.
        weight_total: Valid entries of the whole minibatch, of `objective.valid_entries(valid)`; by default of `batch`.

    Raises:
        ValueError: Shapes that do not fit, or an advantage finer than the ratio.
    """
    _check_shapes(batch, objective.entries)
    mask = objective.valid_entries(batch.valid)

    def join(x: Tensor) -> Tensor:
        return join_log_probs(x, objective.level, objective.dimension_mask, batch.valid)

    def mean(x: Tensor) -> Tensor:
        return masked_mean(x, mask, weight_total)

    def weighted_mean(x: Tensor) -> Tensor:
        return mean(x if batch.weights is None else x * expand_weights(batch.weights, objective.level))

    # `join` puts 0 for what is masked, before exp and products: their gradient is then 0 whatever the entry holds.
    log_probs, acting = join(batch.log_probs), join(batch.old_log_probs)
    proximal = acting if batch.proximal_log_probs is None else join(batch.proximal_log_probs)
    log_ratio = _bounded(log_probs - proximal)
    advantages = expand_advantages(batch.advantages, objective.level)

    ratio = log_ratio.exp()
    surrogate, clipped = _clip(ratio, advantages, objective)
    stale_weight = torch.ones_like(ratio)
    if batch.proximal_log_probs is not None:
        stale_weight = _bounded(proximal - acting).exp().clamp(max=objective.stale_weight_cap).detach()
        surrogate = surrogate * stale_weight

    entropy = join(batch.entropy)
    loss = weighted_mean(surrogate) - objective.entropy_coefficient * weighted_mean(entropy)
    divergence = torch.zeros_like(ratio)
    if batch.reference_log_probs is not None:
        tokens = join_log_probs(
            batch.log_probs - batch.reference_log_probs,
            "token",
            objective.dimension_mask,
            batch.valid,
        )
        divergence = join(estimate_kl(tokens, torch.zeros_like(tokens), objective.reference_estimator))
        loss = loss + objective.reference_coefficient * weighted_mean(divergence)
    with torch.no_grad():
        moved = _bounded(log_probs - acting)
        metrics = PolicyMetrics(
            kl=mean((moved.expm1() - moved).clamp(min=0)),
            clip_share=mean(clipped.to(ratio.dtype)),
            ratio_mean=mean(ratio),
            ratio_square=mean(ratio.square()),
            ratio_min=torch.where(mask, ratio, torch.inf).amin() if ratio.numel() else ratio.new_full((), torch.inf),
            ratio_max=_greatest(ratio, mask),
            ratio_max_negative=_greatest(ratio, mask & (advantages < 0)),
            entropy=mean(entropy),
            reference_kl=mean(divergence),
            stale_weight=mean(stale_weight),
        )
    return loss, metrics


def _check_shapes(batch: PolicyBatch, entries: tuple[int, int]) -> None:
    """Raises ValueError where tensors would broadcast to a loss that nobody meant."""
    for name in ("log_probs", "old_log_probs", "entropy"):
        shape = tuple(getattr(batch, name).shape)
        if shape[1:] != entries:
            raise ValueError(f"{name} has shape {shape}; after the batch it must be the policy's entries, {entries}")
    advantages = tuple(batch.advantages.shape)
    if len(advantages) == 2 and advantages[1] != entries[0]:
        raise ValueError(
            f"advantages {advantages} are per action, and log-probs have {entries[0]} position(s): use advantages per "
            "chunk, or a policy with log-probs for each action"
        )


def _greatest(x: Tensor, mask: Tensor) -> Tensor:
    """The greatest positive entry of the mask, or 0."""
    return torch.where(mask, x, 0).amax() if x.numel() else x.new_zeros(())


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)


def _clip(ratio: Tensor, advantages: Tensor, objective: PolicyObjective) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of each entry, as a loss, and where a clip removes its gradient."""
    plain = -ratio * advantages
    bounded = torch.maximum(plain, -ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * advantages)
    clipped = bounded > plain
    if objective.dual_clip is not None:
        ceiling = -objective.dual_clip * advantages
        exceeds = (advantages < 0) & (bounded > ceiling)
        bounded, clipped = torch.where(exceeds, ceiling, bounded), clipped | exceeds
    return bounded, clipped


Loss = Callable[[PolicyBatch, PolicyObjective, Tensor], tuple[Tensor, PolicyMetrics]]
"""The signature of a policy loss, `policy_loss` and a user's own, which a recipe names as `package.module:function`."""
