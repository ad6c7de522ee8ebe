"""The trace, its drawing, and the idle shares."""

import json
from pathlib import Path

import pytest

from treadle.data.span import Span, busy_seconds
from treadle.reporting.timeline import TraceWriter, idle_shares, timeline_svg

SPANS = [
    Span("simulate", 0, (0,), 10.0, 10.5),
    Span("simulate", 1, (1,), 10.0, 10.25),
    Span("generate", 0, (1, 2), 10.25, 10.5),
    Span("train", 0, (), 10.5, 11.0),
]


def test_the_trace_is_in_the_format_of_chrome_and_keeps_the_latest_iterations(tmp_path: Path):
    writer = TraceWriter(tmp_path, 2)
    for iteration in (1, 2, 3):
        writer.write(iteration, SPANS)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    bars = [event for event in events if event["ph"] == "X"]
    assert [bar["args"]["iteration"] for bar in bars] == [2] * 4 + [3] * 4
    assert [(bar["name"], bar["cat"], bar["pid"], bar["tid"]) for bar in bars[:4]] == [
        ("lane 0", "simulate", 0, 0),
        ("lane 1", "simulate", 0, 1),
        ("lane 1 + 2", "generate", 1, 0),
        ("train", "train", 2, 0),
    ]
    assert (bars[1]["ts"], bars[1]["dur"]) == (10e6, 0.25e6), "microseconds"
    names = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "process_name"}
    assert names == {(0, "simulate"), (1, "generate"), (2, "train")}


def test_no_trace_is_written_where_none_is_asked_for(tmp_path: Path):
    TraceWriter(tmp_path, 0).write(1, SPANS)
    assert not list(tmp_path.iterdir())


def test_the_drawing_has_a_row_for_each_worker_and_a_bar_for_each_span(tmp_path: Path):
    writer = TraceWriter(tmp_path, 3)
    writer.write(1, SPANS[:1])
    writer.write(2, SPANS)
    page = timeline_svg(json.loads((tmp_path / "trace.json").read_text()))
    assert page.count("<rect") == 4
    assert [name in page for name in ("simulate 0", "simulate 1", "generate", "train")] == [True] * 4
    # A second is 904 of 1000 units, after 96 for names.
    assert 'x="96.0" y="0" width="452.0"' in page
    assert "Iteration 2" in page
    assert "1 s</text>" in page


@pytest.mark.parametrize("trace", [None, {}, {"traceEvents": []}])
def test_a_run_without_timeline(trace):
    assert "no timeline" in timeline_svg(trace)


def test_idle_is_what_is_left_of_collecting():
    assert busy_seconds(SPANS, "simulate") == 0.75
    shares = idle_shares({"time/collect": 2.0, "time/simulate": 0.5, "time/generate": 2.5}, 2.5, 0.5)
    assert shares == pytest.approx(
        {"idle/simulate": 0.75, "idle/generate": 0.0, "idle/collect": 0.2, "idle/train": 0.8}
    )
