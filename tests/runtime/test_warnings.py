"""A sign of a silent failure goes all the way: from the update to console, log and report."""

from pathlib import Path

import pytest

from miniature import run_config
from treadle.config.schema import OptimizerConfig
from treadle.reporting.folder import read_run
from treadle.reporting.metrics import read_metrics
from treadle.reporting.report import REPORT_FILE
from treadle.runtime.loop import train

pytestmark = pytest.mark.integration


def test_a_rate_that_moves_no_weight_is_said_once(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    """The critic learns alone in the first of six iterations, and three updates of the policy tell."""
    optimizer = OptimizerConfig(learning_rate=1e-13)
    folder = train(run_config(tmp_path, checkpoint, optimizer=optimizer, iterations=6))
    shares = [row.get("update/unmoved_share") for row in read_metrics(folder)]
    assert shares[0] is None
    assert min(share for share in shares if share is not None) > 0.999
    (said,) = read_run(folder).warnings
    assert said.startswith("iteration 4: 100.00% of the weights that have a gradient are as before the step")
    assert f"warning: {said}" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert said.partition(": ")[2] in (folder / REPORT_FILE).read_text()


def test_a_sound_run_has_no_warning(tmp_path: Path, checkpoint: Path):
    folder = train(run_config(tmp_path, checkpoint))
    assert read_run(folder).warnings == []
    assert "Nothing was warned of." in (folder / REPORT_FILE).read_text()
    last = read_metrics(folder)[-1]
    assert {"update/log_prob_std", "update/last_kl", "update/first_kl", "update/ratio_max_negative"} <= last.keys()
    assert last["update/unmoved_share"] < 0.5
