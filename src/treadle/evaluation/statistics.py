"""Statistics of success rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """Success over a set of episodes."""

    success: float
    """Share of episodes in which the goal held at some time."""
    episodes: int
    ci95: tuple[float, float]
    """Wilson interval of `success`."""
    success_at_end: float
    """Share of episodes in which the goal held after the last action."""
    mean_length: float
    """Control steps."""
    mean_return: float

    @classmethod
    def of(cls, results: Sequence[EpisodeResult]) -> "SuccessRate":
        """The rates over finished episodes."""
        count = len(results)
        successes = sum(result.success_once for result in results)

        def mean(total: float) -> float:
            return total / count if count else 0.0

        return cls(
            success=mean(successes),
            episodes=count,
            ci95=wilson_interval(successes, count),
            success_at_end=mean(sum(result.success_at_end for result in results)),
            mean_length=mean(sum(result.length for result in results)),
            mean_return=mean(sum(result.episode_return for result in results)),
        )
