from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import scenario
from treadle.data.step import EpisodeResult
from treadle.evaluation.statistics import SuccessRate, mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "interval"),
    [
        # z^2 / (n + z^2) with z^2 = 3.8415 is what is left at the ends.
        (0, 10, (0.0, 3.841459 / 13.841459)),
        (10, 10, (10 / 13.841459, 1.0)),
        # (0.5 + 0.19207 -+ 1.95996 sqrt(0.025 + 0.0096036)) / 1.38415
        (5, 10, (0.236593, 0.763407)),
        # Newcombe 1998, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilson_interval(successes, episodes, interval):
    assert wilson_interval(successes, episodes) == pytest.approx(interval, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_rate_and_mirrors(counts):
    successes, episodes = counts
    low, high = wilson_interval(successes, episodes)
    assert 0 <= low <= successes / episodes + 1e-12
    assert successes / episodes - 1e-12 <= high <= 1
    assert wilson_interval(episodes - successes, episodes) == pytest.approx((1 - high, 1 - low))


def test_rates():
    results = [
        EpisodeResult(scenario(0), True, True, 1.0, 4),
        EpisodeResult(scenario(1), True, False, 3.0, 10),
        EpisodeResult(scenario(2), False, False, 0.5, 10),
    ]
    rate = asdict(SuccessRate.of(results))
    assert rate.pop("ci95") == wilson_interval(2, 3)
    assert rate == pytest.approx(
        {
            "success": 2 / 3,
            "episodes": 3,
            "success_once": 2 / 3,
            "success_at_end": 1 / 3,
            "mean_length": 8,
            "mean_return": 1.5,
        }
    )
    at_end = SuccessRate.of(results, "end")
    assert (at_end.success, at_end.success_once, at_end.ci95) == (1 / 3, 2 / 3, wilson_interval(1, 3))


def test_no_episodes():
    assert SuccessRate.of([]) == SuccessRate(0.0, 0, (0.0, 1.0), 0.0, 0.0, 0.0, 0.0)


def test_the_mean_of_rates_has_the_interval_of_its_parts():
    mean, interval = mean_interval([(0.5, (0.2, 0.9))])
    assert (mean, *interval) == pytest.approx((0.5, 0.2, 0.9))
    # sqrt(0.3^2 + 0.4^2) / 2 below, sqrt(0.05^2 + 0.12^2) / 2 above.
    assert mean_interval([(0.5, (0.2, 0.55)), (0.7, (0.3, 0.82))])[1] == pytest.approx((0.35, 0.665))
