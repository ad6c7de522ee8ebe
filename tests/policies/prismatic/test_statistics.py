"""Which statistics scale actions, and what keeps statistics from being used."""

import json
from typing import Any

import pytest

from treadle.errors import CheckpointError
from treadle.policies.prismatic.statistics import Normalization, count_actions, read_range, select_key


def read(
    numbers: object, part: str = "action", normalization: Normalization = "quantiles", size: int | None = None
) -> Any:
    # As a file would have it: NaN and Infinity too.
    stats = json.loads(json.dumps({"set": {"action": numbers}}))
    return read_range(stats, "set", part, normalization, "f.json", size)


def test_bounds_use_min_and_max() -> None:
    numbers = {"q01": [0.0], "q99": [1.0], "min": [-5.0], "max": [5.0]}
    assert read(numbers, normalization="bounds").low.item() == -5.0
    assert read(numbers).low.item() == 0.0


def test_the_key_that_was_asked_for_comes_before_its_twin() -> None:
    """As in the official evaluation."""
    stats = {"libero_no_noops": {}, "libero": {}, "bridge": {}, "kitchen_no_noops": {}}
    assert select_key(stats, "libero", "f.json") == "libero"
    assert select_key(stats, "libero_no_noops", "f.json") == "libero_no_noops"
    assert select_key(stats, "kitchen", "f.json") == "kitchen_no_noops"
    assert select_key({"bridge": {}}, None, "f.json") == "bridge"
    hammer = {"beat_block_hammer_1k": {}}, {"robotwin2_beat_block_hammer_1k": {}}
    for stats_of_one in hammer:
        for asked in ("beat_block_hammer_1k", "robotwin2_beat_block_hammer_1k"):
            assert select_key(stats_of_one, asked, "f.json") == next(iter(stats_of_one))
    with pytest.raises(CheckpointError, match=r"f\.json: no statistics 'kuka'; there are: bridge, kitchen_no_noops, l"):
        select_key(stats, "kuka", "f.json")
    with pytest.raises(CheckpointError, match="choose one of: bridge"):
        select_key(stats, None, "f.json")


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({}, "no statistics of any data set"),
        (None, "the statistics are null; allowed: an object"),
        ([1], r"the statistics are \[1\]"),
    ],
)
def test_no_statistics(stats: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"f.json: {message}"):
        select_key(stats, "x", "f.json")


def test_without_a_mask_every_dimension_is_scaled() -> None:
    """The official code's default; null is none."""
    numbers = {"q01": [0, -1], "q99": [2, 3]}
    for mask in ({}, {"mask": None}, {"mask": [True, 1]}):
        scale = read({**numbers, **mask})
        assert scale.mask.tolist() == [True, True]
        assert scale.low.tolist() == [0, -1]
    # A dimension that is not scaled may have any order, as its numbers are not used.
    assert read({"q01": [0, 3], "q99": [2, -1], "mask": [True, False]}).mask.tolist() == [True, False]


NAN = float("nan")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"q01": [0.0]}, "lacks 'q99'; there are: q01"),
        ({"min": [0.0], "max": [1.0]}, r"lacks 'q01' \(normalization=bounds takes min and max\); there are: max, min"),
        ({"q01": [0.0], "q99": [1.0, 2.0]}, "has 1 q01, 2 q99, 1 mask"),
        ({"q01": [0.0], "q99": [1.0], "mask": [True, False]}, "has 1 q01, 1 q99, 2 mask"),
        ({"q01": [0.0, 0.0], "q99": [1.0, NAN]}, r"q99\[1\]: found NaN; allowed: a finite number"),
        ({"q01": [-float("inf")], "q99": [1.0]}, r"q01\[0\]: found -Infinity"),
        ({"q01": [10**400], "q99": [1.0]}, r"q01\[0\]: found 1000.* \.\.\.; allowed: a finite"),
        ({"q01": [0.0, 2.0], "q99": [1.0, 1.0]}, r"q01\[1\] is 2\.0, above q99\[1\] 1\.0; they must be in order"),
        ({"q01": [None], "q99": [1.0]}, r"q01\[0\]: found null"),
        ({"q01": ["0.5"], "q99": [1.0]}, r'q01\[0\]: found "0\.5"'),
        ({"q01": [True], "q99": [1.0]}, r"q01\[0\]: found true"),
        ({"q01": None, "q99": [1.0]}, "q01: found null; allowed: a list of numbers"),
        ({"q01": 0.5, "q99": 0.5}, r"q01: found 0\.5; allowed: a list"),
        ({"q01": [], "q99": []}, r"q01: found \[\]; allowed: a list"),
        ({"q01": [0.0], "q99": [1.0], "mask": True}, "mask: found true; allowed: null, or a list"),
        ({"q01": [0.0], "q99": [1.0], "mask": ["no"]}, r'mask\[0\]: found "no"'),
        (None, "found null; allowed: an object of lists"),
        ({"q01": [0.0, 0.0], "q99": [1.0, 1.0]}, "has 2 q01; the policy takes 1 numbers"),
    ],
)
def test_statistics_that_cannot_be_used(numbers: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"f\.json: set: action:? {message}"):
        read(numbers, size=1 if numbers == {"q01": [0.0, 0.0], "q99": [1.0, 1.0]} else None)


def test_parts_that_are_missing() -> None:
    with pytest.raises(CheckpointError, match=r"f\.json: set: no 'proprio' statistics; there are: action"):
        read({"q01": [0.0], "q99": [1.0]}, part="proprio")
    with pytest.raises(CheckpointError, match=r"f\.json: set: found \[\]; allowed: an object"):
        count_actions({"set": []}, "set", "f.json")
    with pytest.raises(CheckpointError, match=r"f\.json: set: action lacks q01 and q99; there are: mean"):
        count_actions({"set": {"action": {"mean": [0.0]}}}, "set", "f.json")


def test_dimensions() -> None:
    assert count_actions({"set": {"action": {"min": [0.0] * 14, "max": [1.0] * 14}}}, "set", "f.json") == 14
