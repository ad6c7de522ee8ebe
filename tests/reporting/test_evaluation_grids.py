"""Tables of an evaluation."""

from typing import Any

from treadle.config.protocols import EvalConfig, Protocol, Published
from treadle.config.schema import EvaluationConfig
from treadle.reporting.evaluation_grids import (
    differences_grid,
    protocol_grid,
    published_grid,
    suite_grid,
    task_grid,
)


def rate(success: float, **more: Any) -> dict[str, Any]:
    return {"success": success, "ci95": (0.1, 0.9), "episodes": 4, "success_once": 0.75, "success_at_end": 0.25} | more


def test_suites_with_their_settings():
    suites = {
        "train": rate(0.75, mean_return=1.234, mean_length=20.06),
        "odd": rate(0.5, settings={"odd/a": rate(1.0)}),
    }
    grid = suite_grid({"suites": suites})
    assert grid.head == ["suite", "success", "95 % interval", "at end", "return", "length", "episodes"]
    assert [row.cells for row in grid.rows] == [
        ["train", "75.0 %", "10.0 to 90.0", "25.0 %", "1.23", "20.1", "4"],
        ["odd", "50.0 %", "10.0 to 90.0", "25.0 %", "", "", "4"],
        ["odd/a", "100.0 %", "10.0 to 90.0", "25.0 %", "", "", "4"],
    ]
    end = suite_grid({"suites": suites, "manifest": {"evaluation": {"success": "end"}}})
    assert (end.head[3], end.rows[0].cells[3]) == ("once", "75.0 %")
    assert end.note == "Success: the goal held at the end."


def test_tasks_from_the_worst():
    tasks = {"open_it": rate(1.0), "close_it": rate(0.25), "a": rate(1.0)}
    grid = task_grid({"suites": {"train": rate(0.5, tasks=tasks), "odd": rate(0.5, tasks={})}})
    assert [row.cells[0] for row in grid.rows] == ["train", "close it", "a", "open it"]


def test_published_figures_below_the_measured_ones():
    protocol = Protocol(
        name="p",
        summary="",
        settings={"evaluation": {"episodes": 3}},
        columns={"a": ("train",), "b": ("odd",)},
        published=(
            Published(model="m", sampling="greedy", source="One", success={"a": 1.25}),
            Published(model="n", sampling="sampled", source="Two", success={"a": 2, "b": 3}, note="Late."),
        ),
        caveats=("Beware.",),
        differs=("Light.",),
    )
    settings = EvalConfig(evaluation=EvaluationConfig(episodes=3)).model_dump(mode="json")
    grid = published_grid(protocol, {"mine": {"b": (0.5, (0.25, 0.75))}}, "greedy", settings)
    assert [row.cells for row in grid.rows] == [
        ["mine", "greedy", "", "50.0 %"],
        ["95 % interval", "", "", "25.0 to 75.0"],
        ["m [1]", "greedy", "1.2 %", ""],
        ["n [2]", "sampled", "2.0 %", "3.0 %"],
    ]
    assert grid.note == "[1] One. [2] Two. n: Late. Beware."
    changed = EvalConfig(evaluation=EvaluationConfig(episodes=4)).model_dump(mode="json")
    assert published_grid(protocol, {"mine": {}}, "greedy", changed).note.startswith(
        "Not under the protocol: other values of evaluation.episodes. [1]"
    )
    shown = protocol_grid(protocol, changed)
    assert [row.cells for row in shown.rows] == [["evaluation.episodes", "4", "3"]]
    assert shown.note == "Otherwise than published: Light."


def test_differences():
    grid = differences_grid("D", ["x", "y"], [{"a": 1, "b": [2], "c": "t"}, {"a": 1, "b": [3]}])
    assert [row.cells for row in grid.rows] == [["b", "[2]", "[3]"], ["c", '"t"', "absent"]]
