"""The chain from noise to actions as a Markov process, and its log-probs.

Time runs from t = 1 (noise) to t = 0 (actions) in K steps of d = 1 / K. A field gives the velocity v(x, t); then
x - t v is the clean end and x + (1 - t) v the noisy one. Each method makes the step from t to t - d a Gaussian.
Shapes: B samples, K steps, H predicted actions, D padded dimensions; C <= H actions are executed, A <= D are real.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from treadle.data.noise import Keys, noise_key, uniform
from treadle.errors import ConfigError

Field = Callable[[Tensor, Tensor], Tensor]
"""Velocities [B, H, D] of states [B, H, D] at times [B]."""
Method = Literal["sde", "cps", "learned"]
"""Flow-SDE (Liu et al. 2025, "Flow-GRPO"), Flow-CPS (coefficients-preserving sampling), or a learned deviation."""
Joined = Literal["sum", "mean"]
_STEP_STREAM = 0x5354
"""Keeps the draw of the stochastic step apart from a sample's other random numbers."""


@dataclass(frozen=True, slots=True)
class Noise:
    """How steps are made stochastic. Raises ConfigError for a level without noise, from which nothing would be
    learned, or one that is not finite.
    """

    method: Method = "sde"
    level: float = 0.5
    """a; not read where the deviation is learned."""
    steps: int = 4
    """K."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"noise.steps: found {self.steps}; allowed: 1 or more")
        if self.method == "learned":
            return
        bounded = self.method == "cps"
        if not (0 < self.level <= 1 if bounded else 0 < self.level < math.inf):
            raise ConfigError(
                f"policy.options.level, times the temperature: found {self.level:g}; allowed: above 0 and "
                f"{'at most 1' if bounded else 'finite'}. "
                "Without noise every log-prob is 0 and the policy never learns; evaluate without noise instead"
            )


def step_times(steps: int, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Times [B] before the steps `index` [B]: 1 - index / K, rounded once."""
    return (1 - index.double() / steps).to(dtype)


def euler(x: Tensor, velocity: Tensor, steps: int) -> Tensor:
    """The step without noise, as published samplers take it."""
    return x + (-1.0 / steps) * velocity


def transition(
    x: Tensor, velocity: Tensor, index: Tensor, noise: Noise, deviation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, H, D] of the state after step `index` [B], in the type of `x`.

    Args:
        x: [B, H, D] before the step, float32 at least: rounding must stay far below the deviation.
        velocity: [B, H, D]
        index: [B] int64, from 0 (pure noise) to K - 1.
        noise: the method; its level may be anything here, so that limits can be tested.
        deviation: [B, H, D] of a learned method.
    """
    d = 1.0 / noise.steps
    t = step_times(noise.steps, index, x.dtype)[:, None, None]
    clean, noisy = x - t * velocity, x + (1 - t) * velocity
    after = t - d
    if noise.method == "learned":
        if deviation is None:
            raise ValueError("a learned deviation is needed")
        return clean * (1 - after) + noisy * after, deviation
    if noise.method == "cps":
        angle = math.pi * noise.level / 2
        # Rounding must not leave a deviation at the last step, which ends at t = 0.
        end = torch.where((index == noise.steps - 1)[:, None, None], 0, after)
        return clean * (1 - end) + noisy * end * math.cos(angle), (end * math.sin(angle)).expand_as(x)
    # At t = 1 the denominator is that of the first step's end.
    room = torch.where((index == 0)[:, None, None], torch.full_like(t, d), 1 - t)
    s = noise.level * (t / room).sqrt()
    mean = clean * (1 - after) + noisy * (after - s.square() * d / (2 * t))
    return mean, (math.sqrt(d) * s).expand_as(x)


def gaussian_log_prob(after: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Log-density of each entry; 0, without gradient, where there is no deviation."""
    moved = deviation > 0
    scale = torch.where(moved, deviation, 1)
    found = -0.5 * ((after - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(moved, found, 0)


def gaussian_entropy(deviation: Tensor) -> Tensor:
    """Entropy of each entry in nats; 0 where there is no deviation."""
    moved = deviation > 0
    return torch.where(moved, torch.where(moved, deviation, 1).log() + 0.5 * math.log(2 * math.pi * math.e), 0)


def draw_steps(keys: Keys, noise: Noise) -> Tensor:
    """[B] int64: the one stochastic step of each sample, uniform over steps that have a deviation, by its own key."""
    choices = noise.steps - (noise.method == "cps" and noise.steps > 1)
    drawn = torch.from_numpy(uniform(noise_key(keys, _STEP_STREAM), 1))[:, 0]
    return (drawn.double() * choices).long()


def run_chain(
    field: Field,
    start: Tensor,
    noise: Noise,
    stochastic: Tensor,
    draws: Tensor,
    deviation: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The chain [B, K + 1, H, D] from `start` [B, H, D].

    `stochastic` [B, K] bool says which steps are drawn, by the standard normal `draws` [B, K, H, D]; the others are
    Euler's. `deviation(x, t)` gives the learned one.
    """
    x, chain = start, [start]
    for k in range(noise.steps):
        index = torch.full((len(x),), k, device=x.device)
        t = step_times(noise.steps, index, x.dtype)
        velocity = field(x, t)
        mean, std = transition(x, velocity, index, noise, deviation(x, t) if deviation else None)
        drawn = mean + std * draws[:, k]
        x = torch.where(stochastic[:, k, None, None], drawn, euler(x, velocity, noise.steps))
        chain.append(x)
    return torch.stack(chain, 1)


def integrate(field: Field, start: Tensor, steps: int) -> Tensor:
    """The end [B, H, D] of the chain without noise."""
    x = start
    for k in range(steps):
        x = euler(x, field(x, step_times(steps, torch.full((len(x),), k, device=x.device), x.dtype)), steps)
    return x


def join_steps(log_probs: Tensor, joined: Joined) -> Tensor:
    """Log-probs [B, J, ...] of J drawn steps as those of the chain [B, ...]. The mean makes a ratio the J-th root of
    the true one.
    """
    return log_probs.sum(1) if joined == "sum" else log_probs.mean(1)


def count_executed(log_probs: Tensor, chunk: int, action_dim: int) -> Tensor:
    """Log-probs [B, H, D] of executed entries alone, [B, C, A]. With more than one drawn step its gradient is biased:
    entries that are not executed move the executed ones in later steps.
    """
    return log_probs[:, :chunk, :action_dim]
