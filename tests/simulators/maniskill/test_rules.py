"""Success and score by hand."""

import numpy as np
import pytest

from treadle.simulators.maniskill.put_on_plate.rules import on_plate, score

torch = pytest.importorskip("torch")

# A plate of 11 x 11 x 0.6 cm and a cube of 4 cm: across at most 5.5 + 1 cm, above at most 0.3 + 2 + 5 cm.
HALF_PLATE, HALF_CUBE = [0.055, 0.055, 0.003], [0.02, 0.02, 0.02]
CASES = {
    "in the middle": ([0, 0, 0.023], 1.0, True),
    "just within": ([0.0649, 0, 0.023], 1.0, True),
    "just beyond": ([0.0651, 0, 0.023], 1.0, False),
    "across a corner": ([0.05, 0.05, 0.023], 1.0, False),
    "high on something": ([0, 0, 0.0729], 1.0, True),
    "too high": ([0, 0, 0.0731], 1.0, False),
    "below": ([0, 0, -0.001], 1.0, False),
    "not touching": ([0, 0, 0.023], 0.029, False),
}


@pytest.mark.parametrize("array", [np.array, torch.tensor])
@pytest.mark.parametrize("case", CASES)
def test_on_plate(case, array):
    offset, force, expected = CASES[case]
    plate = array([[0.3, -0.1, 0.9]])
    found = on_plate(plate + array([offset]), plate, array([HALF_CUBE]), array([HALF_PLATE]), array([force]))
    assert bool(found[0]) is expected


def test_a_plate_on_edge_reaches_as_far_as_it_is_tall():
    half = np.array([[0.003, 0.02, 0.055]])
    assert on_plate(np.array([[0.06, 0, 0.023]]), np.zeros((1, 3)), np.array([HALF_CUBE]), half, np.ones(1))[0]


def test_score():
    yes, no = np.array([True]), np.array([False])
    assert score(no, no, no) == 0
    assert np.isclose(score(yes, no, no), 0.1)
    assert np.isclose(score(yes, yes, no), 0.2)
    assert np.isclose(score(yes, yes, yes), 1.2)
    assert score(no, no, yes) == 0, "without a grasp, lying on the plate earns nothing"
