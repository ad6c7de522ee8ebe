import math
import re
from xml.etree import ElementTree

import pytest

from treadle.reporting.plots import (
    HEIGHT,
    WIDTH,
    Axes,
    Series,
    chart,
    moving_mean,
    sparkline_svg,
    standalone_chart,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 100, [20, 40, 60, 80, 100]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (0, 2e-6, [0, 5e-7, 1e-6, 1.5e-6, 2e-6]),
        (0, 4e-20, [0, 1e-20, 2e-20, 3e-20, 4e-20]),
        (0, 4e30, [0, 1e30, 2e30, 3e30, 4e30]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_moving_mean_by_hand() -> None:
    assert moving_mean([0, 3, 6, 9, 0], 3) == [0, 3, 6, 5, 0]
    assert moving_mean([1, math.nan, 5], 3) == [1, 3, 5]


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [2.0, 2.0],
        [0.0, 0.0],
        [1.0, math.nan, 3.0],
        [-1.0, 1.0],
        [i / 9 for i in range(3000)],
        [1e30, 1e30],
        [1e30, math.nextafter(1e30, math.inf)],
        [-1.7e308, 1.7e308] * 40,
        [5e-324, 0.0],
        [1e-310],
        [1.0, math.inf, 2.0],
        [1.0, 1.0 + 2**-52],
    ],
)
def test_any_series_draws_inside_its_frame(values: list[float]) -> None:
    x = list(range(len(values)))
    for stacked in (False, True):
        for axes in (Axes("x < y", "value"), Axes("x", "y", low=0), Axes("x", "y", low=0, high=1, percent=True)):
            content = chart(x, [Series("a", values)], axes, stacked)
            assert len(content) < 40_000
            for path in ElementTree.fromstring(content).iter("path"):
                points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.attrib["d"])
                assert "nan" not in path.attrib["d"]
                assert all(0 <= float(a) <= WIDTH and 0 <= float(b) <= HEIGHT for a, b in points)
    if line := sparkline_svg(values):
        points = re.findall(r"(-?[\d.]+) (-?[\d.]+)", ElementTree.fromstring(line)[0].attrib["d"])
        assert points
        assert all(0 <= float(a) <= 120 and 0 <= float(b) <= 24 for a, b in points)


def test_no_values_no_chart() -> None:
    assert "No values" in chart([1, 2], [Series("a", [math.nan, math.nan])], Axes("x", "y"))


def test_a_point_without_x_is_left_out() -> None:
    whole = chart([1, 2], [Series("a", [3, 4])], Axes("x", "y"))
    assert chart([1, math.nan, 2], [Series("a", [3, 9, 4])], Axes("x", "y")) == whole


def test_a_long_label_of_a_legend_ends_inside_the_picture() -> None:
    for label in ("ppo", "maniskill-pushcube, 1 seed"):
        content = standalone_chart([1, 2], [Series(label, [3, 4])], Axes("x", "y"))
        words = next(text for text in ElementTree.fromstring(content).iter() if text.text == label)
        assert float(words.get("x", 0)) + 6.8 * len(label) <= WIDTH


def titles(svg: str) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", svg)


def test_values_are_shown_where_the_pointer_is() -> None:
    svg = chart([1, 2, 3], [Series("a & b", [0.25, math.nan, 0.5])], Axes("iteration", "share", percent=True))
    assert titles(svg) == ["iteration 1, a &amp; b: 25 %", "iteration 3, a &amp; b: 50 %"]
    many = chart(list(range(1000)), [Series("x", [float(i) for i in range(1000)])], Axes("iteration", ""))
    assert 80 <= len(titles(many)) <= 120


def test_levels_are_lines_with_names_inside_the_chart() -> None:
    axes = Axes("iteration", "share")
    svg = chart([1, 2], [Series("x", [0.4, 0.5])], axes, levels=[("final <", 0.9)])
    assert svg.count('class="level"') == 1
    assert ">final &lt;</text>" in svg
    height = float(re.findall(r'class="level" d="M[\d.]+ ([\d.]+)H', svg)[0])
    assert 0 < height < HEIGHT / 2, "the axis reaches it"


def test_decades_are_written_as_the_numbers_they_are() -> None:
    svg = chart([1, 2], [Series("gap", [-6.0, -5.0])], Axes("iteration", "nats", decades=True))
    assert titles(svg) == ["iteration 1, gap: 1e-6", "iteration 2, gap: 1e-5"]
    assert ">1e-6</text>" in svg
