import numpy as np

from treadle.simulators.tabletop import camera
from treadle.simulators.tabletop.grounding import COLOURS, sample_scenes
from treadle.simulators.tabletop.layout import PLATE_COLOURS
from treadle.simulators.tabletop.scene import SHAPES


def test_scenes_do_not_depend_on_threads_or_count():
    many, few = sample_scenes(70, 5, threads=2), sample_scenes(33, 5, threads=1)
    for name in many.__slots__:
        assert (getattr(many, name)[:33] == getattr(few, name)).all()
    assert (sample_scenes(33, 6).frames != few.frames).any()


def test_about_three_scenes_in_ten_hold_an_object_in_the_air():
    scenes = sample_scenes(200, 0)
    held = scenes.held >= 0
    assert 0.2 < held.mean() < 0.4
    carried = scenes.positions[held, scenes.held[held]]
    assert np.abs(carried - scenes.proprioception[held, :3]).max() < 0.01
    assert (scenes.proprioception[held, 6] == 1).all()


def test_a_plate_is_seen_where_the_labels_put_it():
    scenes = sample_scenes(60, 1)
    rays = camera.standard_rays(64)
    right = 0
    for i in range(60):
        nearest = np.square(rays.ground - scenes.positions[i, 2, :2]).sum(1).argmin()
        pixel = scenes.frames[i].reshape(-1, 3)[nearest] / 255
        colours = np.array(list(PLATE_COLOURS.values())[:4])
        right += list(PLATE_COLOURS)[np.square(colours - pixel).sum(1).argmin()] == COLOURS[scenes.classes[i, 2]]
    # The gripper hides some.
    assert right >= 40


def test_instructions_name_what_is_there():
    scenes = sample_scenes(40, 2)
    texts, named = scenes.ask(np.random.default_rng(0), np.arange(40))
    assert scenes.class_count == len(COLOURS) == len(set(COLOURS))
    assert scenes.positions.shape == (40, 4, 3)
    # What learns from scenes reports its errors under these names.
    assert (len(scenes.things), len(scenes.asked)) == (scenes.classes.shape[1], named.shape[1])
    for column, what in enumerate(scenes.asked):
        assert all(what in scenes.things[thing] for thing in named[:, column])
    for row, text in enumerate(texts):
        thing, plate = named[row]
        words = text.split()
        assert words[2] == COLOURS[scenes.classes[row, thing]]
        assert words[3] == SHAPES[scenes.shapes[row, thing]]
        assert words[6] == COLOURS[scenes.classes[row, plate]]
    assert {tuple(pair) for pair in named.tolist()} == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_things_are_named_as_the_protocol_of_scenes_says():
    scenes = sample_scenes(3, 0, image_size=16)
    assert len(scenes.things) == scenes.classes.shape[1]
    _, named = scenes.ask(np.random.default_rng(0), np.arange(3))
    assert len(scenes.asked) == named.shape[1]
    assert all(
        scenes.things[column].endswith(asked) for row in named for column, asked in zip(row, scenes.asked, strict=True)
    )
