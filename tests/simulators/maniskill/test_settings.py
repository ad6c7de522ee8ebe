"""Put-on-plate's settings against the published definition, counted by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ConfigError
from treadle.simulators.maniskill.put_on_plate import placements
from treadle.simulators.maniskill.put_on_plate.settings import FIRST_EPISODES, PHRASES, SETTINGS, axes, first_layout
from treadle.simulators.maniskill.put_on_plate.task import PutOnPlateTask, drawn_numbers


def test_there_are_sixteen_settings_beside_training():
    assert len(SETTINGS) == 17
    assert [len(members) for members in axes().values()] == [5, 8, 3]
    assert SETTINGS["train"].sizes == (16, 1, 1, 16, 784, 4)
    assert SETTINGS["semantic/object"].sizes == (9, 1, 1, 16, 784, 4)
    assert SETTINGS["semantic/plate"].sizes == (16, 1, 16, 16, 784, 4)
    assert SETTINGS["vision/table"].sizes[3] == 5
    assert len(set(PHRASES)) == 21
    assert PHRASES[0] == "put {object} on {plate}", "in training"
    assert PHRASES[16] == "the {object} should be placed on the {plate}.", "the last of the sixteen that are evaluated"


@pytest.mark.parametrize("name", FIRST_EPISODES)
def test_the_first_episode_is_the_one_that_a_published_constructor_draws(name):
    drawn = torch.randint(0, SETTINGS[name].length, (1,), generator=torch.Generator().manual_seed(2022))
    assert drawn.item() == FIRST_EPISODES[name]


def test_a_published_environment_is_built_with_seen_things_and_a_third_where_the_setting_has_one():
    assert first_layout("texture").effect == "none"
    for name in ("semantic/two-objects", "semantic/two-plates", "execution/moved"):
        effect = SETTINGS[name].effect
        assert first_layout(effect).effect == effect
        assert len(first_layout(effect).places) == 3
    assert first_layout("plate").plate == 0


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


@pytest.mark.parametrize(
    ("name", "rl4vla", "rlinf"),
    [
        ("train", (0.95, 0.95), (0.9, 0.9)),
        ("semantic/plate", (0.95, 0.95), (0.9, 0.9)),
        ("execution/arm", (0.95, 0.95), (0.9, 0.9)),
        ("execution/place", (0.95, 0.95), (0.95, 0.95)),
        ("execution/moved", (0.95, 0.92, 1.0), (0.95, 0.92, 1.0)),
        ("semantic/two-objects", (0.95, 0.92, 1.0), (0.95, 0.92, 1.0)),
        ("semantic/two-plates-seen", (1.0, 0.92, 0.96), (1.0, 0.92, 0.96)),
    ],
)
def test_things_are_let_go_at_the_published_heights(name, rl4vla, rlinf):
    setting = SETTINGS[name]
    for layout in (setting.layout(0), setting.published_layout(0)):
        assert layout.drops[: len(layout.places)] == rl4vla
    assert setting.layout(0, "rlinf").drops[: len(rlinf)] == rlinf


def test_numbers_of_the_published_environments():
    """Their arithmetic, worked out by hand, with one place and rotation after the table's."""
    setting = SETTINGS["train"]
    # Object 3, table 5, place 7, rotation 2.
    layout = setting.published_layout(((3 * 1 + 0) * 16 + 5) * 784 * 4 + 7 * 4 + 2)
    assert (layout.object, layout.table, layout.yaw) == (3, 5, np.pi / 2)
    assert np.array_equal(layout.places, placements.pairs()[7])
    plates = SETTINGS["semantic/two-plates"]
    per_table = len(plates.places) * 4
    # Object 2, plate 3 of the unseen, extra 4: the other plate is (3 + 4 + 1) % 16, of the unseen too.
    layout = plates.published_layout((((2 * 16 + 3) * 15 + 4) * 21 + 20) * per_table)
    assert (layout.object, layout.plate, layout.other, layout.table) == (2, 4, 9, 20)
    objects = SETTINGS["semantic/two-objects"]
    per_table = len(objects.places) * 4
    # (16 + 0 + 1) % 9 + 16 is another; (16 + 1 + 1) % 9 + 16 is the object itself, in the other's place.
    first, second = (objects.published_layout(((0 * 8 + extra) * 16 + 0) * per_table) for extra in (0, 1))
    assert (first.object, first.other) == (16, 24)
    assert (second.object, second.other) == (16, 16)
    phrased = SETTINGS["semantic/wording"].published_layout(((1 * 16 + 15) * 16) * 784 * 4)
    assert (phrased.object, phrased.phrase) == (1, 16)


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


def test_drawn_episodes_are_those_of_torchs_generator():
    torch = pytest.importorskip("torch")
    task = PutOnPlateTask(None, episodes="drawn", drops="rlinf")
    scenarios = {split: task.scenarios("train", split) for split in ("train", "evaluation")}
    setting, generator = SETTINGS["train"], torch.Generator().manual_seed(0)
    # As 256 environments draw theirs; the enumeration has more, whose first are the same.
    numbers = torch.randint(0, setting.length, (256,), generator=generator).tolist()
    for index in (0, 1, 255):
        expected = setting.published_layout(numbers[index], "rlinf")
        for split in ("train", "evaluation"):
            layout = task.layout(scenarios[split][index])
            assert (layout.object, layout.table, layout.yaw, layout.drops[0]) == (
                expected.object,
                expected.table,
                expected.yaw,
                0.9,
            )
    assert len(scenarios["train"]) == 4096
    assert len(task.scenarios("vision", "evaluation")) == 5 * 4096
    # Numbers above 2^32 are drawn by another arithmetic, which must not depend on how many there are either.
    large = SETTINGS["execution/arm"].length
    assert large > 2**32
    few = torch.randint(0, large, (3,), generator=torch.Generator().manual_seed(0)).tolist()
    assert drawn_numbers(large)[:3] == few
