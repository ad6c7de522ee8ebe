"""Advantage estimators on the valid timeline.

Shapes: N entries in time, B slots. At chunk level N is T; at action level N is T * C (`masks.flatten_actions`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def estimate_gae(
    rewards: Tensor,
    values: Tensor,
    ended: Tensor,
    bootstrap_values: Tensor,
    last_values: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16), for several episodes in a row per slot.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lambda * (1 - ended_t) * A_{t+1}

    V_{t+1} is the bootstrap value where the episode ended, the value of the slot's next valid entry elsewhere, and
    `last_values` after the slot's last valid entry. Invalid entries are skipped as if they were not there, whatever
    they hold. At action level the value of the next action of a chunk is the critic's output for that action index,
    and the one after the chunk's last action is output 0 of the next chunk.

    Args:
        rewards: [N, B].
        values: [N, B], V of each entry.
        ended: [N, B] bool, the episode ended with this entry.
        bootstrap_values: [N, B], what follows an entry where the episode ended: V(final observation) for a truncation,
            0 for a termination. Read where `ended` only.
        last_values: [B], V of the observation after the rollout. Read where the last valid entry did not end.
        valid: [N, B] bool.
        gamma: Discount per entry.
        gae_lambda: In [0, 1].

    Returns:
        Advantages [N, B] and returns A + V [N, B]; 0 where invalid.

    Raises:
        ValueError: Shapes differ.
    """
    named = {"values": values, "ended": ended, "bootstrap_values": bootstrap_values, "valid": valid}
    for name, x in named.items():
        if x.shape != rewards.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, rewards {tuple(rewards.shape)}")
    if last_values.shape != rewards.shape[1:]:
        raise ValueError(f"last_values has shape {tuple(last_values.shape)}, wanted {tuple(rewards.shape[1:])}")

    advantages = torch.zeros_like(values)
    next_value = last_values
    next_advantage = torch.zeros_like(last_values)
    for t in reversed(range(rewards.shape[0])):
        following = torch.where(ended[t], bootstrap_values[t], next_value)
        delta = rewards[t] + gamma * following - values[t]
        advantage = delta + gamma * gae_lambda * torch.where(ended[t], 0, next_advantage)
        advantages[t] = torch.where(valid[t], advantage, 0)
        next_advantage = torch.where(valid[t], advantage, next_advantage)
        next_value = torch.where(valid[t], values[t], next_value)
    return advantages, torch.where(valid, advantages + values, 0)


def discounted_returns(rewards: Tensor, ended: Tensor, valid: Tensor, *, gamma: float) -> Tensor:
    """What an episode earns from each entry on, `G_t = r_t + gamma * (1 - ended_t) * G_{t+1}`; 0 where invalid.

    Nothing is bootstrapped: an episode that the rollout cuts off counts as if it earned no more. All are [N, B].
    """
    zero = torch.zeros_like(rewards)
    last = torch.zeros_like(rewards[0])
    return estimate_gae(rewards, zero, ended & valid, zero, last, valid, gamma=gamma, gae_lambda=1.0)[0]


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean, sum of squared deviations and range of some entries; those of parts (ranks, rollouts) add up."""

    count: Tensor
    mean: Tensor
    deviations: Tensor
    low: Tensor
    """Infinite where there is no entry."""
    high: Tensor
    """Minus infinite where there is no entry."""

    @staticmethod
    def of(x: Tensor, valid: Tensor) -> "Moments":
        """Moments of the valid entries of x; both of one shape, which may be any."""
        count = valid.sum()
        mean = torch.where(valid, x, 0).sum() / count.clamp(min=1)
        deviations = torch.where(valid, x - mean, 0).square().sum()
        bound = x.new_full((1,), torch.inf)
        low = torch.cat([torch.where(valid, x, torch.inf).flatten(), bound]).amin()
        high = torch.cat([torch.where(valid, x, -torch.inf).flatten(), -bound]).amax()
        return Moments(count, mean, deviations, low, high)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both parts together (Chan et al. 1979, "Updating formulae and a pairwise algorithm")."""
        count = self.count + other.count
        share = other.count / count.clamp(min=1)
        gap = other.mean - self.mean
        deviations = self.deviations + other.deviations + gap.square() * self.count * share
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Moments(count, self.mean + gap * share, deviations, low, high)

    def numbers(self) -> Tensor:
        """[5] float64, from which `Moments(*numbers)` is made again."""
        return torch.stack([self.count, self.mean, self.deviations, self.low, self.high]).double()


def normalize(advantages: Tensor, valid: Tensor, eps: float = 1e-5, moments: Moments | None = None) -> Tensor:
    """`(A - mean) / (std + eps)` over all valid entries, with the population's standard deviation; 0 where invalid.

    A single valid entry is left as it is: its own mean is no baseline, and subtracting it would erase the signal.
    Both are of one shape, which may be any. Where they are a part of a batch (one rank's), `moments` are those of the
    whole batch, the sum of `Moments.of` over its parts.
    """
    whole = Moments.of(advantages, valid) if moments is None else moments
    masked = torch.where(valid, advantages, 0)
    centered = torch.where(valid, advantages - whole.mean, 0)
    std = (whole.deviations / whole.count.clamp(min=1)).sqrt()
    return torch.where(whole.count > 1, centered / (std + eps), masked)


def explained_variance(errors: Moments, returns: Moments) -> Tensor:
    """`1 - Var[returns - values] / Var[returns]`, a scalar, of the moments of `returns - values` and of returns: 1 is a
    perfect critic, 0 no better than a constant. Returns that do not vary (or fewer than 2) give 0, as there is nothing
    to explain.
    """
    # By comparing, as equal entries have a small deviation by rounding.
    varied = returns.high > returns.low
    return torch.where(varied, 1 - errors.deviations / torch.where(varied, returns.deviations, 1), 0)
