"""Facts of episodes, against numbers that are written out."""

import json
from pathlib import Path

import pytest

from fakes import scenario
from miniature import learning_config
from treadle.data.step import EpisodeResult
from treadle.evaluation.statistics import wilson_interval
from treadle.runtime.facts import FIRST, EpisodeFacts
from treadle.training.on_policy.alarms import Alarms


def played(*outcomes: tuple[bool, float]) -> list[EpisodeResult]:
    return [EpisodeResult(scenario(i), won, won, earned, 4) for i, (won, earned) in enumerate(outcomes)]


def with_base(folder: Path, success: float, low: float) -> EpisodeFacts:
    path = folder / "evaluation" / "base.json"
    path.parent.mkdir()
    found = {"success": success, "episodes": 100, "ci95": [low, 0.9]}
    path.write_text(json.dumps({"suites": {"train": found, "vision": found | {"success": 0.0}}}))
    return EpisodeFacts(folder)


def test_success_while_sampling_beside_the_base(tmp_path: Path):
    facts = with_base(tmp_path, 0.55, 0.45)
    assert facts.of(1, played(*[(False, 0.0)] * 6)) == {}, "six episodes say nothing"
    found = facts.of(2, played((True, 1.0), *[(False, 0.0)] * 93))
    assert found == {
        "base/success": 0.55,
        "base/success_low": 0.45,
        "sampled/success": 0.01,
        "sampled/success_high": pytest.approx(wilson_interval(1, 100, 4.0)[1]),
    }
    # (0.01 + 16 / 200 + 4 sqrt(0.01 * 0.99 / 100 + 16 / 40000)) / 1.16
    assert found["sampled/success_high"] == pytest.approx((0.09 + 4 * 0.000499**0.5) / 1.16)
    assert facts.of(FIRST + 1, played(*[(False, 0.0)] * 50)) == {}, "later it is another policy"


def test_success_of_1_percent_while_the_base_has_55_raises_the_alarm(tmp_path: Path):
    facts = with_base(tmp_path, 0.55, 0.45)
    made = Alarms(learning_config(), [])
    said = made.see(facts.of(1, played(*[(True, 1.0)] * 2, *[(False, 0.0)] * 198)))
    assert "1.0% of the sampled episodes succeed (at most" in said["worse_than_greedy"]
    assert made.see(facts.of(2, played(*[(True, 1.0)] * 200))) == {}


def test_no_base_no_comparison(tmp_path: Path):
    assert EpisodeFacts(tmp_path).of(1, played(*[(True, 1.0)] * 50)) == {}


def test_returns_of_success_and_failure(tmp_path: Path):
    """Ten successes return -1 or -3, ten failures -0.5 or -0.7: variances 10/9 and 0.1/9 over ten each."""
    facts = EpisodeFacts(tmp_path)
    won, lost = [(True, -1.0), (True, -3.0)] * 5, [(False, -0.5), (False, -0.7)] * 5
    assert facts.of(1, played(*won)) == {}
    found = facts.of(2, played(*lost))
    error = (10 / 9 / 10 + 0.1 / 9 / 10) ** 0.5
    assert found == pytest.approx({"return/success": -2.0, "return/failure": -0.6, "return/gap_high": -1.4 + 4 * error})
    assert found["return/gap_high"] < 0
    said = Alarms(learning_config(), []).see(found)["idle_pays"]
    assert said.startswith("episodes that succeed return -2 in the mean, and those that fail -0.6")


def test_returns_that_noise_explains_are_no_alarm(tmp_path: Path):
    facts = EpisodeFacts(tmp_path)
    outcomes = [(True, -1.0), (True, 1.0), (False, -0.9), (False, 1.1)] * 5
    assert Alarms(learning_config(), []).see(facts.of(1, played(*outcomes))) == {}


def test_old_returns_are_forgotten(tmp_path: Path):
    facts = EpisodeFacts(tmp_path)
    facts.of(1, played(*[(True, -5.0)] * 10))
    found = [facts.of(i, played(*[(False, 0.0)] * 10)) for i in range(2, 8)]
    assert ["return/success" in each for each in found] == [True] * 4 + [False] * 2
