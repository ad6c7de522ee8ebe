"""What a run's episodes say beside its metrics, for checks: success while sampling beside the base's, and returns."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from treadle.data.step import EpisodeResult
from treadle.evaluation.statistics import wilson_interval
from treadle.reporting.folder import read_evaluation

FIRST = 5
"""Iterations in which the policy is nearly its base."""
_WINDOW = 5
"""Iterations over which returns are compared."""
_FEWEST = 10
"""Episodes of each kind that a comparison takes at least."""
_SURE = 4.0
"""Standard errors of an interval that chance does not leave: once in 30,000 times."""


class EpisodeFacts:
    """Facts of the episodes that a run plays.

    Args:
        directory: its folder, which has the evaluation of its base.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._latest: deque[Sequence[EpisodeResult]] = deque(maxlen=_WINDOW)
        self._sampled = [0, 0]
        """Successes and episodes of the first iterations."""

    def of(self, iteration: int, episodes: Sequence[EpisodeResult]) -> dict[str, float]:
        """Facts by name, after the episodes of an iteration, counted from 1:

        - `base/success`, `base/success_low`: of the base's evaluation in distribution, and the end of its interval;
        - `sampled/success`, `sampled/success_high`: of all episodes of the first iterations, likewise;
        - `return/success`, `return/failure`: mean return of the latest episodes that succeeded, and that failed;
        - `return/gap_high`: the upper end of an interval of the difference of the two.

        Raises OutputError where the evaluation cannot be read.
        """
        self._latest.append(episodes)
        return self._success(iteration, episodes) | self._returns()

    def _success(self, iteration: int, episodes: Sequence[EpisodeResult]) -> dict[str, float]:
        if iteration > FIRST:
            return {}
        self._sampled[0] += sum(episode.success_once for episode in episodes)
        self._sampled[1] += len(episodes)
        base = (read_evaluation(self._directory, "base") or {"suites": {}})["suites"].get("train")
        won, count = self._sampled
        if base is None or count < _FEWEST:
            return {}
        return {
            "base/success": base["success"],
            "base/success_low": base["ci95"][0],
            "sampled/success": won / count,
            "sampled/success_high": wilson_interval(won, count, _SURE)[1],
        }

    def _returns(self) -> dict[str, float]:
        played = [episode for episodes in self._latest for episode in episodes]
        won = [episode.episode_return for episode in played if episode.success_once]
        lost = [episode.episode_return for episode in played if not episode.success_once]
        if min(len(won), len(lost)) < _FEWEST:
            return {}
        (high, high_error), (low, low_error) = _mean(won), _mean(lost)
        gap_high = high - low + _SURE * math.hypot(high_error, low_error)
        return {"return/success": high, "return/failure": low, "return/gap_high": gap_high}


def _mean(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    mean = math.fsum(numbers) / len(numbers)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1) / len(numbers))
