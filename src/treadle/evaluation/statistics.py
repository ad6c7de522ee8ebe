"""Statistics of success rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from treadle.data.step import EpisodeResult

Z95 = 1.959963984540054


def wilson_interval(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Confidence interval of a success rate (Wilson 1927): with p = successes / episodes,
    `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`; (0, 1) where there were no episodes.
    """
    if episodes == 0:
        return 0.0, 1.0
    p = successes / episodes
    centre = p + z * z / (2 * episodes)
    spread = z * math.sqrt(p * (1 - p) / episodes + z * z / (4 * episodes**2))
    scale = 1 + z * z / episodes
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


Rule = Literal["once", "end"]
"""Which episodes count as successes: the goal held at some time, or after the last action."""


def succeeded(result: EpisodeResult, rule: Rule) -> bool:
    """Whether an episode counts as a success."""
    return result.success_once if rule == "once" else result.success_at_end


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Success over a set of episodes."""

    success: float
    """Share of episodes that succeeded, by the rule of the evaluation."""
    episodes: int
    ci95: tuple[float, float]
    """Wilson interval of `success`. It takes episodes for independent, also repeats of one scenario."""
    success_once: float
    """Share of episodes in which the goal held at some time."""
    success_at_end: float
    """Share of episodes in which the goal held after the last action."""
    mean_length: float
    """Control steps."""
    mean_return: float

    @classmethod
    def of(cls, results: Sequence[EpisodeResult], rule: Rule = "once") -> "SuccessRate":
        """The rates over finished episodes."""
        count = len(results)
        successes = sum(succeeded(result, rule) for result in results)

        def mean(total: float) -> float:
            return total / count if count else 0.0

        return cls(
            success=mean(successes),
            episodes=count,
            ci95=wilson_interval(successes, count),
            success_once=mean(sum(result.success_once for result in results)),
            success_at_end=mean(sum(result.success_at_end for result in results)),
            mean_length=mean(sum(result.length for result in results)),
            mean_return=mean(sum(result.episode_return for result in results)),
        )


def mean_interval(parts: Sequence[tuple[float, tuple[float, float]]]) -> tuple[float, tuple[float, float]]:
    """The mean of independent rates, each with its interval, and an interval of the mean: with n rates p, from l to u,
    `mean - sqrt(sum (p - l)^2) / n` to `mean + sqrt(sum (u - p)^2) / n` (Zou and Donner 2008). One rate keeps its own.
    """
    count = len(parts)
    mean = sum(rate for rate, _ in parts) / count
    below = math.sqrt(sum((rate - low) ** 2 for rate, (low, _) in parts)) / count
    above = math.sqrt(sum((high - rate) ** 2 for rate, (_, high) in parts)) / count
    return mean, (max(0.0, mean - below), min(1.0, mean + above))
