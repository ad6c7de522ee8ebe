"""What was predicted beside what was measured."""

import json
from pathlib import Path

import pytest

from miniature import run_config
from treadle.config.placement import RuntimeConfig
from treadle.errors import ConfigError
from treadle.reporting.folder import RunFolder
from treadle.reporting.prediction import measured_seconds, predicted_line
from treadle.runtime.loop import train
from treadle.runtime.planning.profile import Affine, Profile, write_profile


def test_the_first_iterations_do_not_count():
    assert measured_seconds([9.0, 8.0, 1.0, 3.0, 2.0]) == 2.0
    assert measured_seconds([9.0, 8.0]) is None


def test_a_prediction_stands_beside_the_measured_time():
    rows = [{"time/iteration": seconds} for seconds in (9.0, 9.0, 2.0)]
    prediction = {"seconds": 1.5, "bound": "generate (90 %)", "source": "two <cores>"}
    run = RunFolder(Path(), {}, rows, None, None, [], None, None, None, prediction)
    said = predicted_line(run)
    assert "Predicted: 1.5 s an iteration, bound by generate (90 %). Measured: 2 s, the median" in said
    assert "the prediction is 25% too short. Profile: two &lt;cores&gt;." in said
    assert predicted_line(RunFolder(Path(), {}, rows, None, None, [], None, None, None)) == ""


@pytest.mark.integration
def test_a_run_with_a_profile_predicts_its_iterations(tmp_path: Path, checkpoint: Path):
    # 4 slots, 3 decisions, both in turns on all cores: 3 x (4 x 0.5 + 4 x 0.25) + 12 x 0.125.
    cost = [{1: Affine(0.0, each)} for each in (0.5, 0.25, 0.125)]
    write_profile(tmp_path / "profile.json", Profile("by hand", *cost))
    config = run_config(tmp_path, checkpoint, runtime=RuntimeConfig(profile=tmp_path / "profile.json"))
    directory = train(config)
    assert json.loads((directory / "plan.json").read_text())["seconds"] == 3 * 3 + 1.5
    assert "Predicted: 10.5 s an iteration" in (directory / "report.html").read_text()
    missing = RuntimeConfig(profile=tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"none\.json"):
        train(run_config(tmp_path / "other", checkpoint, runtime=missing))
