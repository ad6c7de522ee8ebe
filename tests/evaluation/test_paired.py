"""Paired comparisons, worked by hand."""

import math
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import scenario
from treadle.data.step import EpisodeResult
from treadle.evaluation.paired import Trials, compare_paired, permutation_p


def results(*successes: bool, first: int = 0) -> list[EpisodeResult]:
    return [EpisodeResult(scenario(first + i), good, False, 0.0, 1) for i, good in enumerate(successes)]


def once(a: bool, b: bool) -> Trials:
    return Trials(int(a), 1, int(b), 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """The textbook's exact test: twice the smaller tail of Binomial(n, 1/2)."""
    count, few = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(few + 1)) / 2**count)


def test_mcnemar_by_hand():
    # Ten scenarios where one alone succeeds, two of them A's: 2 (1 + 10 + 45) / 1024. Concordant ones do not count.
    trials = [once(True, False)] * 2 + [once(False, True)] * 8 + [once(True, True)] * 7 + [once(False, False)] * 3
    assert permutation_p(trials) == pytest.approx(112 / 1024)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_with_one_episode_each_it_is_mcnemars_exact_test(only_a, only_b, both):
    trials = [once(True, False)] * only_a + [once(False, True)] * only_b + [once(True, True)] * both
    if trials:
        assert permutation_p(trials) == pytest.approx(mcnemar(only_a, only_b))


def test_permutation_within_states_by_hand():
    # One state, two episodes each, A 0 of 2 and B 2 of 2. Of the 6 ways to choose A's two, one gives A 0 successes,
    # four give 1 and one gives 2; 0 and 2 are as far from the mean of 1.
    assert permutation_p([Trials(0, 2, 2, 2)]) == pytest.approx(2 / 6)
    # Two such states: sums 0 to 4 have weights 1, 8, 18, 8, 1 of 36.
    assert permutation_p([Trials(0, 2, 2, 2)] * 2) == pytest.approx(2 / 36)
    # Beside a state without a difference, t = 2 of 4 split evenly: found 1 + 0 of a mean of 1 + 1.
    assert permutation_p([Trials(0, 2, 2, 2), Trials(1, 2, 1, 2)]) == pytest.approx((1 + 8 + 8 + 1) / 36)


def test_permutation_of_a_whole_suite():
    # 900 states where one alone succeeds, 400 of them A's, by the textbook; and 4500 states of 3 + 3 episodes.
    assert permutation_p([once(True, False)] * 400 + [once(False, True)] * 500) == pytest.approx(mcnemar(400, 500))
    trials = [Trials(i % 3, 3, (i + 1) % 4, 3) for i in range(4500)]
    assert permutation_p([*trials, *(Trials(t.successes_b, 3, t.successes_a, 3) for t in trials)]) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=4))
def test_permutation_is_the_share_of_all_relabellings(successes):
    trials = [Trials(a, 2, b, 3) for a, b in successes]
    of = [[1] * (t.successes_a + t.successes_b) + [0] * (5 - t.successes_a - t.successes_b) for t in trials]
    mean, found = sum(2 * sum(one) for one in of), 5 * sum(t.successes_a for t in trials)
    sums = [5 * sum(map(sum, chosen)) for chosen in product(*(combinations(one, 2) for one in of))]
    share = sum(abs(total - mean) >= abs(found - mean) for total in sums) / len(sums)
    assert permutation_p(trials) == pytest.approx(share)


def test_permutation_is_not_fooled_by_hard_and_easy_states():
    # A state that all win and one that all lose have no say, as they do not depend on the policy.
    assert permutation_p([Trials(0, 2, 2, 2), Trials(2, 2, 2, 2), Trials(0, 2, 0, 2)]) == pytest.approx(2 / 6)


def test_episodes_that_are_not_equally_many():
    # A 0 of 1 and B 2 of 2: of 3 episodes 2 succeed. A's one fails in 1 of 3 ways, 2/3 from the mean; it succeeds in 2
    # ways, 1/3 from the mean.
    assert permutation_p([Trials(0, 1, 2, 2)]) == pytest.approx(1 / 3)


def test_a_comparison_by_hand():
    a, b = results(True, True, False, False), results(True, False, True, True)
    found = compare_paired(a, b)
    assert found is not None
    assert (found.scenarios, found.left_out, found.only_a, found.only_b) == (4, 0, 1, 2)
    assert found.difference == 0.25
    assert found.p_value == 1.0
    # 1 both, 1 A alone, 2 B alone, 0 neither: correlation (1 * 0 - 1 * 2) / sqrt(2 * 2 * 3 * 1), without correction.
    phi = -2 / math.sqrt(12)
    (p_low, p_high), (q_low, q_high) = (0.150039, 0.849961), (0.300642, 0.954413)
    left, right = 0.75 - q_low, p_high - 0.5
    low = 0.25 - math.sqrt(left**2 - 2 * phi * left * right + right**2)
    left, right = q_high - 0.75, 0.5 - p_low
    high = 0.25 + math.sqrt(left**2 - 2 * phi * left * right + right**2)
    assert found.ci95 == pytest.approx((low, high), abs=1e-5)


def test_policies_that_agree_have_a_narrow_interval():
    wins = [i % 2 == 0 for i in range(100)]
    same = compare_paired(results(*wins), results(*wins))
    other = compare_paired(results(*wins), results(*[not win for win in wins]))
    assert same is not None
    assert other is not None
    assert (same.difference, same.p_value) == (0.0, 1.0)
    assert same.ci95[1] - same.ci95[0] < 0.5 * (other.ci95[1] - other.ci95[0])


def test_scenarios_that_one_alone_has_played_are_left_out():
    found = compare_paired(results(True, False, True), results(False, True, False, first=2))
    assert found is not None
    assert (found.scenarios, found.left_out, found.only_a, found.only_b) == (1, 4, 1, 0)
    assert compare_paired(results(True), results(True, first=5)) is None


def test_repeats_go_by_state_and_cut_ones_are_left_out():
    a = results(False, False, True) + results(False, True, True)
    b = results(True, True, True) + results(True, False)
    found = compare_paired(a, b)
    assert found is not None
    # Scenario 0: A 0 of 2, B 2 of 2; scenario 1: 1 of 2 each; scenario 2 is short of an episode of B.
    assert (found.scenarios, found.left_out, found.only_b, found.difference) == (2, 1, 1, 0.5)
    assert found.p_value == pytest.approx(18 / 36)
    # Gains 1 and 0: standard deviation sqrt(1/2), error 1/2.
    assert found.ci95 == pytest.approx((0.5 - 0.97998, 0.5 + 0.97998), abs=1e-5)


def test_the_rule_decides_what_counts():
    a = [EpisodeResult(scenario(0), True, False, 0.0, 1)]
    b = [EpisodeResult(scenario(0), True, True, 0.0, 1)]
    once, end = compare_paired(a, b), compare_paired(a, b, "end")
    assert once is not None
    assert end is not None
    assert (once.difference, end.difference) == (0.0, 1.0)
