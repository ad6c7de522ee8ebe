"""What is shown while checkpoints are evaluated."""

import io

import pytest
from rich.console import Console

from treadle.reporting import evaluation_console as module
from treadle.reporting.evaluation_console import EvaluationConsole


def lines(output: io.StringIO) -> list[str]:
    return output.getvalue().splitlines()


def test_a_pipe_gets_a_line_at_the_end_of_each_suite():
    output = io.StringIO()
    with EvaluationConsole(
        1, Console(file=output, width=60), lambda made: [f"weights of {made['weights']}"]
    ) as watcher:
        watcher.begin({"checkpoint": "a[b]", "weights": "x"}, {"train": 4, "vision": 2}, {"train": 1, "vision": 0})
        for good in (True, False, True):
            watcher.ended("train", good)
        for good in (False, False):
            watcher.ended("vision", good)
        watcher.stage("filming")
    assert lines(output) == [
        "weights of x",
        "a[b]: 1 of 6 episodes were played before",
        "[0:00] a[b]  train 4/4  all 4/6  success 66.7%  left 0:00",
        "[0:00] a[b]  vision 2/2  all 6/6  success 40.0%  left 0:00",
        "[0:00] a[b]  filming",
    ]


def test_time_left_is_of_all_checkpoints_and_counts_what_was_played_here(monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    watcher = EvaluationConsole(3, Console(file=io.StringIO()))
    now = 150.0
    watcher.begin({"checkpoint": "a"}, {"train": 10}, {"train": 6})
    now = 154.0
    watcher.ended("train", True)
    watcher.ended("train", True)
    # Two episodes took 4 seconds, loading aside; 2 are left of this checkpoint and 20 of two others.
    assert watcher.seconds_left() == pytest.approx(44)
    assert watcher.line() == "a  train 8/10  success 100.0%  left 0:44"


def test_a_pipe_gets_a_line_every_ten_seconds(monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    output = io.StringIO()
    watcher = EvaluationConsole(1, Console(file=output))
    watcher.begin({"checkpoint": "a"}, {"train": 100}, {})
    for seconds in range(4, 44, 4):
        now = seconds
        watcher.ended("train", False)
    assert [line.split()[0] for line in lines(output)] == ["[0:12]", "[0:24]", "[0:36]"]


def test_an_evaluation_that_was_played_before_says_how_to_play_it_again():
    output = io.StringIO()
    watcher = EvaluationConsole(1, Console(file=output))
    watcher.begin({"checkpoint": "a"}, {"train": 3}, {"train": 3})
    assert lines(output) == ["a: all 3 episodes were played before; --again plays them anew"]
