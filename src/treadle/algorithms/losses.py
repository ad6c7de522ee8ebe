"""PPO's losses.

Shapes: B decisions, C actions of a chunk, A action dimensions, K = C * A action tokens. An *entry* is what one
importance ratio covers: a token [B, C, A], an action [B, C] or a chunk [B].

Micro-batches: give each the minibatch's number of valid entries as `weight_total`, and their losses and gradients sum
to the minibatch's.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "action", "chunk"]

_LOG_RATIO_BOUND = 20.0
"""exp of more overflows half precision and soon float32; inf times a gradient of 0 would be NaN."""


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """What the policy loss reads of B decisions."""

    log_probs: Tensor
    """[B, K] float32, of the policy in training, with gradient."""
    old_log_probs: Tensor
    """[B, K] float32, of the policy that acted."""
    entropy: Tensor
    """[B, K] float32, nats, with gradient if an entropy bonus is wanted."""
    advantages: Tensor
    """[B, C] at action level, [B] at chunk level."""
    valid: Tensor
    """[B, C] bool, actions that were played."""


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """Constants of the policy loss."""

    level: Level
    """What one importance ratio covers."""
    action_dim: int
    """A."""
    clip_low: float
    """The ratio is clipped below 1 - clip_low."""
    clip_high: float
    """The ratio is clipped above 1 + clip_high."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus."""
    dual_clip: float | None = None
    """Bound c > 1 on the ratio's weight for negative advantages, None for no bound."""
    dimension_mask: Tensor | None = None
    """[A] bool, False for dimensions that get no gradient; None trains all."""

    def entries(self, valid: Tensor) -> Tensor:
        """`valid_entries` at this level; its sum over a minibatch is the `weight_total` of the micro-batches."""
        return valid_entries(valid, self.level, self.action_dim, self.dimension_mask)


@dataclass(frozen=True, slots=True)
class PolicyMetrics:
    """Detached scalars over the valid entries; the means are shares of `weight_total`, so that micro-batches add up."""

    kl: Tensor
    """Estimate of KL(acting policy || policy in training), never negative: k3 = (r - 1) - log r (Schulman 2020,
    "Approximating KL divergence")."""
    clip_share: Tensor
    """Share of entries whose gradient a clip removes."""
    ratio_mean: Tensor
    ratio_max: Tensor
    """0 where nothing is valid."""
    entropy: Tensor
    """Mean at the ratio's level."""

    def __add__(self, other: "PolicyMetrics") -> "PolicyMetrics":
        """Metrics of two micro-batches of one minibatch."""
        return PolicyMetrics(
            kl=self.kl + other.kl,
            clip_share=self.clip_share + other.clip_share,
            ratio_mean=self.ratio_mean + other.ratio_mean,
            ratio_max=torch.maximum(self.ratio_max, other.ratio_max),
            entropy=self.entropy + other.entropy,
        )


@dataclass(frozen=True, slots=True)
class ValueBatch:
    """What the value loss reads; all of one shape, [B, C] at action level, [B] at chunk level."""

    values: Tensor
    """Of the critic in training, with gradient."""
    old_values: Tensor
    """Of the critic at the rollout."""
    returns: Tensor
    valid: Tensor
    """bool."""


@dataclass(frozen=True, slots=True)
class ValueMetrics:
    """Detached scalars over the valid entries; shares of `weight_total`, so that micro-batches add up."""

    error: Tensor
    """Mean absolute error of the values."""
    clip_share: Tensor
    """Share of entries whose gradient the clip removes."""

    def __add__(self, other: "ValueMetrics") -> "ValueMetrics":
        """Metrics of two micro-batches of one minibatch."""
        return ValueMetrics(self.error + other.error, self.clip_share + other.clip_share)


def join_log_probs(
    log_probs: Tensor,
    level: Level,
    action_dim: int,
    dimension_mask: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Log-probs (or entropies) of tokens [B, K] joined to entries: [B, C, A], [B, C] or [B].

    Masked dimensions, and with `valid` [B, C] actions that were not played, contribute 0. At chunk level the ratio is
    then that of the actions that were played, which is exact for autoregressive and for parallel decoding.
    """
    if log_probs.dim() != 2 or log_probs.shape[1] % action_dim:
        raise ValueError(f"log_probs must be [B, C * {action_dim}], found shape {tuple(log_probs.shape)}")
    joined = log_probs.reshape(log_probs.shape[0], log_probs.shape[1] // action_dim, action_dim)
    if dimension_mask is not None:
        joined = torch.where(dimension_mask, joined, 0)
    if valid is not None:
        joined = torch.where(valid[..., None], joined, 0)
    if level == "token":
        return joined
    return joined.sum(-1) if level == "action" else joined.sum((-2, -1))


def valid_entries(valid: Tensor, level: Level, action_dim: int, dimension_mask: Tensor | None = None) -> Tensor:
    """Actions played [B, C] as a bool mask of entries: [B, C, A], [B, C] or [B]. A chunk counts if any action of it was
    played; with no dimension left in the mask, nothing counts.
    """
    dimensions = valid.new_ones(action_dim) if dimension_mask is None else dimension_mask
    tokens = valid[..., None] & dimensions
    if level == "token":
        return tokens
    return tokens.any(-1) if level == "action" else tokens.flatten(1).any(-1)


def expand_advantages(advantages: Tensor, level: Level) -> Tensor:
    """Advantages [B, C] (action) or [B] (chunk) to a shape that broadcasts with entries of the given level.

    Raises:
        ValueError: An advantage per action with a ratio per chunk: one ratio has one gradient weight, so it cannot
            credit the actions of the chunk apart.
    """
    if advantages.dim() not in (1, 2):
        raise ValueError(f"advantages must be [B, C] or [B], found shape {tuple(advantages.shape)}")
    if level == "chunk":
        if advantages.dim() == 2:
            raise ValueError(
                f"advantages {tuple(advantages.shape)} are per action and the ratio per chunk: one ratio cannot carry "
                "an advantage per action; use advantages per chunk, or a ratio per action or token"
            )
        return advantages
    per_action = advantages if advantages.dim() == 2 else advantages[:, None]
    return per_action[..., None] if level == "token" else per_action


def masked_mean(x: Tensor, mask: Tensor, weight_total: float | Tensor | None = None) -> Tensor:
    """Sum of x over the mask, divided by the mask's count or by `weight_total`; a scalar, 0 where the divisor is 0.

    Args:
        x: Any shape.
        mask: bool, the shape of x.
        weight_total: Number of valid entries of the minibatch that x is a part of.
    """
    total = torch.as_tensor(mask.sum() if weight_total is None else weight_total, device=x.device)
    return torch.where(mask, x, 0).sum() / torch.where(total > 0, total, 1)


def policy_loss(
    batch: PolicyBatch, objective: PolicyObjective, weight_total: float | Tensor | None = None
) -> tuple[Tensor, PolicyMetrics]:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), as a loss, with an entropy bonus.

        L = - mean min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - entropy_coefficient * mean H

    The bounds are separate as in DAPO's clip-higher (Yu et al. 2025). With dual clip the term of a negative advantage
    is at most -c A (Ye et al. 2020, "Mastering Complex Control in MOBA Games", equation 5). Log-ratios are cut to
    [-20, 20]. Nothing valid: a loss of 0 with a gradient of 0.

    Args:
        batch: Decisions of one micro-batch.
        objective: Constants.
        weight_total: Valid entries of the whole minibatch (`objective.entries(valid).sum()`), by default of `batch`.

    Raises:
        ValueError: Shapes that do not fit, or an advantage finer than the ratio.
    """
    mask = objective.entries(batch.valid)

    def join(x: Tensor) -> Tensor:
        return join_log_probs(x, objective.level, objective.action_dim, objective.dimension_mask, batch.valid)

    # `join` puts 0 for what is masked, before exp and products: their gradient is then 0 whatever the entry holds.
    log_ratio = (join(batch.log_probs) - join(batch.old_log_probs)).clamp(-_LOG_RATIO_BOUND, _LOG_RATIO_BOUND)
    advantages = expand_advantages(batch.advantages, objective.level)

    ratio = log_ratio.exp()
    plain = -ratio * advantages
    bounded = torch.maximum(plain, -ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high) * advantages)
    clipped = bounded > plain
    if objective.dual_clip is not None:
        ceiling = -objective.dual_clip * advantages
        exceeds = (advantages < 0) & (bounded > ceiling)
        bounded, clipped = torch.where(exceeds, ceiling, bounded), clipped | exceeds

    entropy = masked_mean(join(batch.entropy), mask, weight_total)
    loss = masked_mean(bounded, mask, weight_total) - objective.entropy_coefficient * entropy
    with torch.no_grad():
        metrics = PolicyMetrics(
            kl=masked_mean((log_ratio.expm1() - log_ratio).clamp(min=0), mask, weight_total),
            clip_share=masked_mean(clipped.to(ratio.dtype), mask, weight_total),
            ratio_mean=masked_mean(ratio, mask, weight_total),
            ratio_max=torch.where(mask, ratio, 0).amax() if ratio.numel() else ratio.new_zeros(()),
            entropy=entropy.detach(),
        )
    return loss, metrics


def value_loss(
    batch: ValueBatch, clip: float, huber_delta: float, weight_total: float | Tensor | None = None
) -> tuple[Tensor, ValueMetrics]:
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
    loss = masked_mean(torch.maximum(plain, moved), batch.valid, weight_total)
    with torch.no_grad():
        metrics = ValueMetrics(
            error=masked_mean((values - returns).abs(), batch.valid, weight_total),
            clip_share=masked_mean((moved > plain).to(values.dtype), batch.valid, weight_total),
        )
    return loss, metrics


def _huber(error: Tensor, delta: float) -> Tensor:
    size = error.abs()
    # d (|e| - d / 2) with d = min(|e|, delta) is both branches, and has no inf - inf for delta = inf.
    inside = size.clamp(max=delta)
    return inside * (size - inside / 2)
