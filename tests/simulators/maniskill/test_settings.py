"""Put-on-plate's settings against the published definition, counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ConfigError
from treadle.simulators.maniskill.put_on_plate import placements
from treadle.simulators.maniskill.put_on_plate.settings import PHRASES, SETTINGS, axes
from treadle.simulators.maniskill.put_on_plate.task import PutOnPlateTask


def test_there_are_sixteen_settings_beside_training():
    assert len(SETTINGS) == 17
    assert [len(members) for members in axes().values()] == [5, 8, 3]
    assert SETTINGS["train"].sizes == (16, 1, 1, 16, 784, 4)
    assert SETTINGS["semantic/object"].sizes == (9, 1, 1, 16, 784, 4)
    assert SETTINGS["semantic/plate"].sizes == (16, 1, 16, 16, 784, 4)
    assert SETTINGS["vision/table"].sizes[3] == 5
    assert len(set(PHRASES)) == 17


def test_places():
    assert np.allclose(placements.grid().min(0), [-0.235, -0.075])
    assert np.allclose(placements.grid().max(0), [-0.085, 0.075])
    assert len(placements.ring()) == 28
    assert np.allclose(placements.ring().min(0), [-0.265, -0.105])
    inside = (np.abs(placements.ring() - placements.CENTRE) < placements.HALF_EDGE + 1e-9).all(1)
    assert not inside.any()
    first, second, third = placements.triples("object").swapaxes(0, 1)
    assert (np.linalg.norm(first - third, axis=1) > 0.15).all()
    assert (np.linalg.norm(first - second, axis=1) > 0.07).all()
    first, second, third = placements.triples("plate").swapaxes(0, 1)
    assert (np.linalg.norm(second - third, axis=1) > 0.15).all()
    # 25 pairs of shoulder and elbow less the two with a sum of 0.3 radians either way, times 5^4 for the other joints.
    assert len(placements.arm_starts()) == 23 * 5**4


@given(name=st.sampled_from(sorted(SETTINGS)), index=st.integers(0, 10**9))
def test_splits_are_disjoint_and_layouts_valid(name, index):
    setting = SETTINGS[name]
    train, kept = setting.episodes("train"), setting.episodes("evaluation")
    assert train + kept == setting.length
    numbers = setting.number("train", index % train), setting.number("evaluation", index % kept)
    assert numbers[0] != numbers[1]
    layout = setting.layout(numbers[1])
    assert setting.objects[0] <= layout.object < setting.objects[1]
    assert setting.plates[0] <= layout.plate < setting.plates[1]
    if layout.effect == "object":
        assert layout.other != layout.object
        assert setting.others[0] <= layout.other < setting.others[1]
    if layout.effect == "plate":
        assert layout.other != layout.plate
        assert setting.others[0] <= layout.other < setting.others[1]
    assert layout.places.shape == (3 if layout.effect in ("object", "plate", "move") else 2, 2)


def test_numbers_are_a_permutation():
    setting = SETTINGS["vision/table"]
    # The arithmetic of a number is the same on an array of them.
    train = setting.number("train", np.arange(setting.episodes("train")))  # type: ignore[arg-type]
    kept = setting.number("evaluation", np.arange(setting.episodes("evaluation")))  # type: ignore[arg-type]
    assert np.array_equal(np.sort(np.concatenate([train, kept])), np.arange(setting.length))  # type: ignore[list-item]
    assert len({setting.layout(number).object for number in kept[:64]}) == 16


def test_scenarios_of_an_axis_take_turns():
    task = PutOnPlateTask(None)
    suites = [scenario.suite for scenario in task.scenarios("execution", "evaluation")[:6]]
    assert suites == ["execution/place", "execution/arm", "execution/moved"] * 2
    with pytest.raises(ConfigError, match="no suite 'lighting'"):
        task.scenarios("lighting", "train")


def test_instructions():
    task = PutOnPlateTask(None)
    scenario = task.scenarios("semantic/two-objects", "evaluation")[0]
    own, other = task.instructions(scenario)
    assert own == scenario.instruction != other
    layout = task.layout(task.scenarios("semantic/wording", "evaluation")[0])
    assert layout.phrase > 0
    train = task.scenarios("train", "train")
    assert all(scenario.instruction.startswith("put ") for scenario in train[:20])
    known = " ".join(task.vocabulary()).split()
    assert set(own.split()) <= set(known)
