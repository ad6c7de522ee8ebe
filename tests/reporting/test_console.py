import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import BASE, FINAL, evaluation, metrics_row

from treadle.reporting import console as console_module
from treadle.reporting.console import RunConsole, sparkline
from treadle.reporting.summary import RunSummary, suite_results

SUMMARY = RunSummary(
    suite_results(evaluation(BASE)),
    suite_results(evaluation(FINAL)),
    {"train": 312.0},
    900.0,
    0.0,
    1024000,
    3300.0,
    {},
    0,
)


def _play(output: io.StringIO, terminal: bool) -> str:
    console = Console(file=output, force_terminal=terminal, width=100, _environ={"TERM": "xterm-256color"})
    with RunConsole("quick[bold]start", 30, console) as run:
        run.stage("evaluating base: vision")
        run.progress(120, 256)
        run.progress(256, 256)
        run.stage("training")
        for iteration in range(1, 31):
            run.iteration(metrics_row(iteration))
        run.message("saved [checkpoint]")
        run.finish(SUMMARY, Path("runs/quickstart/report.html"))
    return output.getvalue()


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = _play(io.StringIO(), terminal=False)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    # The first and the last: the thirty iterations take far less than the seconds between two lines.
    assert [int(found) for found in re.findall(r"iteration (\d+)/30", text)] == [1, 30]
    assert any("evaluating base: vision 256/256" in line for line in lines)
    assert "saved [checkpoint]" in lines
    assert "report: runs/quickstart/report.html" in lines

    monkeypatch.setattr(console_module, "_LINE_SECONDS", 0.0)
    assert len(re.findall(r"iteration (\d+)/30", _play(io.StringIO(), terminal=False))) == 30


def test_a_pipe_without_unicode_is_enough() -> None:
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding="ascii")
    with RunConsole("quickstart", 2, Console(file=output, width=100)) as run:
        run.iteration(metrics_row(1))
        run.finish(SUMMARY, Path("report.html"))
    output.flush()
    assert b"94.5%" in raw.getvalue()


def test_a_terminal_gets_a_panel_and_the_closing_table() -> None:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", _play(io.StringIO(), terminal=True))
    assert "quick[bold]start" in text
    assert "30/30" in text
    assert "simulate" in text
    assert re.search(r"success +\d+\.\d%", text)
    closing = text[text.index("success, with 95") :]
    for suite in ("in distribution", "vision", "semantic", "execution"):
        assert suite in closing
    for number in ("48.4%", "94.5%", "+46.1"):
        assert number in closing


def test_a_sparkline_is_the_mean_of_equal_parts() -> None:
    assert sparkline([0.0, 0.5, 1.0], 40) == "▁▅█"
    assert sparkline([0.0, 1.0, 1.0, 1.0], 2) == "▅█"
    assert sparkline([float("nan"), 2.0], 2) == " █"
    assert sparkline([], 5) == ""
