import hashlib

import numpy as np
import pytest

from treadle.errors import ConfigError
from treadle.simulators.tabletop.layout import CONCRETE, OBJECT_GAP, OBJECT_PLATE_GAP, PLATE_GAP, REACH, SQUARE, layout
from treadle.simulators.tabletop.simulator import LENGTH, Tabletop

enumerate_suite = Tabletop(1).scenarios


def test_an_enumeration_is_stable_lazy_and_without_repeats():
    scenarios = enumerate_suite("train", "train")
    assert len(scenarios) == LENGTH
    assert scenarios[7] == enumerate_suite("train", "train")[7]
    assert scenarios[-1].index == LENGTH - 1
    assert len({layout("train", "train", i).objects.tobytes() for i in range(300)}) == 300
    with pytest.raises(IndexError):
        scenarios[LENGTH]


def test_layouts_are_the_same_on_every_machine():
    """Pinned: a change here changes what every published scenario id means."""
    scene = layout("train", "evaluation", 3)
    digest = hashlib.sha256(np.round(np.r_[scene.objects.ravel(), scene.plates.ravel(), scene.start], 9).tobytes())
    assert (scene.instruction, digest.hexdigest()[:12]) == ("put the blue prism on the black plate", "890cd04dd512")


def test_splits_and_suites_are_disjoint():
    layouts = {
        layout(suite, split, i).objects.tobytes()
        for suite in ("train", "vision/light")
        for split in ("train", "evaluation")
        for i in range(200)
    }
    assert len(layouts) == 800


def test_an_axis_takes_its_settings_in_turn():
    suites = [scenario.suite for scenario in enumerate_suite("vision", "evaluation")[:5]]
    assert suites == ["vision/texture", "vision/noise", "vision/light", "vision/camera", "vision/texture"]
    assert enumerate_suite("vision", "evaluation")[5] == enumerate_suite("vision/noise", "evaluation")[1]


def test_unknown_suites_and_splits_are_refused():
    with pytest.raises(ConfigError, match="vision/fog"):
        enumerate_suite("vision/fog", "train")
    with pytest.raises(ConfigError, match="test"):
        enumerate_suite("train", "test")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("suite", CONCRETE)
def test_nothing_overlaps_and_names_are_unambiguous(suite: str):
    for index in range(40):
        scene = layout(suite, "train", index)
        points = np.concatenate([scene.objects[:, :2], scene.plates])
        objects = len(scene.objects)
        for i in range(len(points)):
            for j in range(i):
                gap = OBJECT_GAP if i < objects else PLATE_GAP if j >= objects else OBJECT_PLATE_GAP
                assert np.linalg.norm(points[i] - points[j]) > gap
        assert np.abs(points).max() <= (REACH if suite == "execution/position" else SQUARE)
        assert len(set(scene.colours)) == objects
        assert len(set(scene.plate_colours)) == len(scene.plates)
        assert all(word in scene.instruction for word in (scene.colours[0], scene.shapes[0], scene.plate_colours[0]))


def test_each_setting_differs_from_training_as_it_says():
    def scenes(suite: str):
        return [layout(suite, "evaluation", i) for i in range(60)]

    assert {scene.look.texture for scene in scenes("vision/texture")} == {"checker", "stripes", "noise", "wood"}
    assert all(scene.look.noise > 0 for scene in scenes("vision/noise"))
    assert all(any(scene.look.camera) for scene in scenes("vision/camera"))
    assert all(abs(scene.look.ambient + scene.look.diffuse - 1.07) > 0.15 for scene in scenes("vision/light"))
    known = {"red", "green", "blue", "yellow"}, {"cube", "cylinder", "prism", "brick"}
    assert all(s.colours[0] not in known[0] or s.shapes[0] not in known[1] for s in scenes("semantic/object"))
    plates = {"white", "black", "pink", "cyan"}
    assert all(s.plate_colours[0] not in plates or s.plate_shapes[0] == "square" for s in scenes("semantic/plate"))
    assert all(not s.instruction.startswith("put the") for s in scenes("semantic/instruction"))
    assert len({s.instruction.replace(s.plate_colours[0], "") for s in scenes("semantic/instruction")}) > 16
    assert all(len(s.objects) == 3 for s in scenes("semantic/distractor_object"))
    assert all(len(s.plates) == 3 for s in scenes("semantic/distractor_plate"))
    assert all(np.abs(s.objects[0, :2]).max() > SQUARE for s in scenes("execution/position"))
    assert all(np.abs(s.start[:2]).min() >= 0.07 for s in scenes("execution/pose"))
    assert all(s.move is not None for s in scenes("execution/moved"))
    for scene in scenes("train"):
        assert set(scene.colours) <= known[0]
        assert set(scene.shapes) <= known[1]
        assert set(scene.plate_colours) <= plates
        assert scene.plate_shapes == ("round", "round")
        assert not scene.look.noise
        assert not any(scene.look.camera)
        assert scene.look.texture == "plain"


@pytest.mark.parametrize("suite", ["train", "semantic/instruction", "semantic/distractor_plate"])
def test_a_scene_could_be_asked_for_each_pair_of_things(build, suite: str):
    simulator = build(1)
    scenario = simulator.scenarios(suite, "train")[4]
    instructions = simulator.instructions(scenario)
    scene = layout(suite, "train", 4)
    assert instructions[0] == scenario.instruction
    assert len(set(instructions)) == len(scene.objects) * len(scene.plates)
    words = {word for text in simulator.vocabulary() for word in text.replace(",", "").split()}
    assert {word for text in instructions for word in text.replace(",", "").split()} <= words
