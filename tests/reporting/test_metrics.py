import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from treadle.errors import OutputError
from treadle.reporting.metrics import MetricsWriter, read_metrics


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [{"iteration": i, "rollout/success": i / 7, "any/other": -1e-12} for i in (1, 2)]
    with MetricsWriter(tmp_path) as writer:
        for row in rows:
            writer.write(row)
            # Each line is on disk at once, for whoever watches.
            assert read_metrics(tmp_path)[-1] == row
    assert read_metrics(tmp_path) == rows


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write({"iteration": 1, "a": math.nan, "b": math.inf, "c": -math.inf})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"iteration": 1, "a": None, "b": None, "c": None}
    assert math.isnan(read_metrics(tmp_path)[0]["a"])


def test_resume_drops_what_the_checkpoint_does_not_hold(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for iteration in range(1, 8):
            writer.write({"iteration": iteration, "run": 1})
    with MetricsWriter(tmp_path, resume_at=5) as writer:
        for iteration in range(6, 10):
            writer.write({"iteration": iteration, "run": 2})
    rows = read_metrics(tmp_path)
    assert [row["iteration"] for row in rows] == list(range(1, 10))
    assert [row["run"] for row in rows] == [1] * 5 + [2] * 4

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    scalars = board.Scalars("run")
    assert [event.step for event in scalars] == list(range(1, 10))
    assert [event.value for event in scalars] == [1] * 5 + [2] * 4


def test_resume_mends_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iterat')
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2]
    with MetricsWriter(tmp_path, resume_at=2) as writer:
        writer.write({"iteration": 3})
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\nrubbish\n{"iteration": 3}\n')
    with pytest.raises(OutputError, match="line 2"):
        read_metrics(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        MetricsWriter(tmp_path / "file")


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path)
    with pytest.raises(OutputError, match="No space left"):
        writer.write({"iteration": 1})


def test_missing_metrics_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder of a run"):
        read_metrics(tmp_path)
