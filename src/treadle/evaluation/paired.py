"""Comparison of two policies on the same scenarios.

Success of a scenario goes together from policy to policy, so a paired comparison sees smaller differences than two
intervals do. In formulas, A and B are the policies and s a scenario that both have played.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treadle.data.step import EpisodeResult
from treadle.evaluation.statistics import Z95, Rule, succeeded, wilson_interval


@dataclass(frozen=True, slots=True)
class Trials:
    """How often each policy succeeded in one scenario, of how many episodes."""

    successes_a: int
    episodes_a: int
    successes_b: int
    episodes_b: int


@dataclass(frozen=True, slots=True)
class PairedResult:
    """B compared with A."""

    scenarios: int
    """Scenarios that both have played, equally often as all others."""
    left_out: int
    """Scenarios that one of them alone has played, or not as often as the others."""
    only_a: int
    """Scenarios where A succeeded more often than B."""
    only_b: int
    """Scenarios where B succeeded more often than A."""
    difference: float
    """Success of B minus that of A, on these scenarios."""
    ci95: tuple[float, float]
    """Interval of `difference`."""
    p_value: float
    """Of a difference this large, or larger, in either direction, if both were equally good."""


def compare_paired(a: Sequence[EpisodeResult], b: Sequence[EpisodeResult], rule: Rule = "once") -> PairedResult | None:
    """B compared with A on the scenarios that both have played; None where there are none."""
    found_a, found_b = _by_scenario(a, rule), _by_scenario(b, rule)
    shared = found_a.keys() & found_b.keys()
    if not shared:
        return None
    # An evaluation that was cut short has scenarios with fewer episodes; they are left out, so that all weigh the same.
    often_a, often_b = (max(len(found[name]) for name in shared) for found in (found_a, found_b))
    kept = sorted(n for n in shared if len(found_a[n]) == often_a and len(found_b[n]) == often_b)
    if not kept:
        return None
    trials = [Trials(sum(found_a[name]), often_a, sum(found_b[name]), often_b) for name in kept]
    gains = [t.successes_b / t.episodes_b - t.successes_a / t.episodes_a for t in trials]
    return PairedResult(
        scenarios=len(kept),
        left_out=len(found_a.keys() | found_b.keys()) - len(kept),
        only_a=sum(gain < 0 for gain in gains),
        only_b=sum(gain > 0 for gain in gains),
        difference=sum(gains) / len(gains),
        ci95=_newcombe(trials) if often_a == often_b == 1 else _clustered(gains),
        p_value=permutation_p(trials),
    )


def permutation_p(trials: Sequence[Trials]) -> float:
    """The exact two-sided permutation test within scenarios. Every scenario must have as many episodes as the others.

    If the policies are equally good, which of a scenario's episodes are A's is chance. Of its `a_s + b_s` episodes
    `t_s` succeeded, so A's successes `X_s` are hypergeometric: `P(X_s = x) = C(t_s, x) C(a_s + b_s - t_s, a_s - x) /
    C(a_s + b_s, a_s)`. With `S = sum X_s` and `m = sum a_s t_s / (a_s + b_s)`, the result is `P(|S - m| >= |s - m|)`
    for the sum s that was found. With one episode each, this is McNemar's exact test: with n scenarios where one alone
    succeeded, and k of them A's, `min(1, 2 P(Binomial(n, 1/2) <= min(k, n - k)))`.
    """
    whole = trials[0].episodes_a + trials[0].episodes_b
    expected = sum(trial.episodes_a * (trial.successes_a + trial.successes_b) for trial in trials)
    found = sum(trial.successes_a for trial in trials)
    # Trials of equal totals have the same distribution, so its power is taken at once.
    sums = np.ones(1)
    for (ours, total), count in Counter((t.episodes_a, t.successes_a + t.successes_b) for t in trials).items():
        sums = np.convolve(sums, _power(_hypergeometric(whole, total, ours), count))
    # In whole numbers: distances from the mean are multiples of 1 / (a + b).
    extreme = np.abs(np.arange(len(sums)) * whole - expected) >= abs(found * whole - expected)
    return min(1.0, float(sums[extreme].sum()))


def _hypergeometric(whole: int, total: int, ours: int) -> NDArray[np.float64]:
    """P(X = x), from 0 on: of `whole` episodes, `total` of them successes, `ours` are drawn and x succeed."""
    ways = [math.comb(total, x) * math.comb(whole - total, ours - x) for x in range(min(total, ours) + 1)]
    return np.array([way / math.comb(whole, ours) for way in ways])


def _power(one: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The distribution of the sum of `count` independent numbers, each with the distribution `one`."""
    result = np.ones(1)
    while count:
        if count & 1:
            result = np.convolve(result, one)
        count >>= 1
        if count:
            one = np.convolve(one, one)
    return result


def _newcombe(trials: Sequence[Trials]) -> tuple[float, float]:
    """Interval of the difference of two paired rates p (A) and q (B) with Wilson intervals (l, u) and (m, v) (Newcombe
    1998, paired method 10): `q - p - sqrt((q-m)^2 - 2 f (q-m)(u-p) + (u-p)^2)` to `q - p + sqrt((v-q)^2 - 2 f (v-q)
    (p-l) + (p-l)^2)`, where f is the correlation of the two, corrected for continuity if it is positive.
    """
    count = len(trials)
    both = sum(t.successes_a and t.successes_b for t in trials)
    a, b = sum(t.successes_a for t in trials), sum(t.successes_b for t in trials)
    neither = count - a - b + both
    product = both * neither - (a - both) * (b - both)
    scale = a * (count - a) * b * (count - b)
    corrected = max(product - count / 2, 0.0) if product > 0 else product
    correlation = corrected / math.sqrt(scale) if scale else 0.0
    p, q = a / count, b / count
    (p_low, p_high), (q_low, q_high) = wilson_interval(a, count), wilson_interval(b, count)

    def spread(left: float, right: float) -> float:
        return math.sqrt(max(0.0, left * left - 2 * correlation * left * right + right * right))

    return q - p - spread(q - q_low, p_high - p), q - p + spread(q_high - q, p - p_low)


def _clustered(gains: Sequence[float]) -> tuple[float, float]:
    """Mean of the scenarios' differences, and 1.96 standard errors to both sides; -1 to 1 for a single scenario."""
    count = len(gains)
    if count == 1:
        return -1.0, 1.0
    mean = sum(gains) / count
    error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (count - 1) / count)
    return mean - Z95 * error, mean + Z95 * error


def _by_scenario(results: Sequence[EpisodeResult], rule: Rule) -> Mapping[str, list[bool]]:
    found: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        found[result.scenario.id].append(succeeded(result, rule))
    return found
