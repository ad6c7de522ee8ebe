"""What is read from the sources of RoboTwin's tasks, and the instructions that are made of it."""

import numpy as np
import pytest

from treadle.errors import SimulatorError
from treadle.simulators.robotwin import instructions, tasks
from treadle.simulators.robotwin.tasks import HORIZONS, TASKS, Thing, objects_used, things_named


def test_fifty_tasks_of_which_seven_are_published():
    assert len(TASKS) == len(set(TASKS)) == 50
    assert len(HORIZONS["rlinf"]) == 7
    assert len(HORIZONS["simplevla-rl"]) == 21
    for of_tasks in HORIZONS.values():
        assert of_tasks.keys() <= set(TASKS)


def test_horizons_differ_by_who_published_them():
    theirs, others = HORIZONS["rlinf"], HORIZONS["simplevla-rl"]
    assert {task for task in theirs if theirs[task] != others[task]} == {"place_container_plate"}
    assert (theirs["place_container_plate"], others["place_container_plate"]) == (200, 150)


def test_objects_that_a_source_names(package):
    assert objects_used(tasks.task_source("beat_block_hammer")) == {"020_hammer": {0}}
    assert objects_used(tasks.task_source("pick_dual_bottles")) == {"001_bottle": {13}, "019_coaster": set()}


def test_things_that_instructions_name(package):
    assert things_named(tasks.task_source("beat_block_hammer")) == {"A": Thing("020_hammer", 0), "a": None}
    assert things_named(tasks.task_source("pick_dual_bottles")) == {"A": Thing("001_bottle", None), "B": None}


def test_templates_that_need_nothing_of_the_scene(package):
    assert instructions.templates("beat_block_hammer", "seen") == (
        "Beat the block with {A}.",
        "Take the {A} and beat it.",
    )
    assert instructions.templates("beat_block_hammer", "unseen") == ("Hit with {A}.",)


def test_a_task_whose_templates_all_need_the_scene_is_described(package):
    assert instructions.templates("pick_dual_bottles", "seen") == ("pick up two bottles",)


def test_an_object_of_unknown_model_is_called_by_its_kind(package):
    things = {"A": Thing("001_bottle", None)}
    assert instructions.usable(["Lift {A}."], things, "lift") == ("Lift {A}.",)
    assert instructions._names(things["A"], "seen") == ("bottle",)


def test_words_follow_from_the_generator(package):
    said = [instructions.word("beat_block_hammer", "seen", np.random.default_rng(i)) for i in range(40)]
    assert said == [instructions.word("beat_block_hammer", "seen", np.random.default_rng(i)) for i in range(40)]
    names = ("red hammer", "old hammer")
    assert set(said) == {f"Beat the block with the {name}." for name in names} | {
        f"Take the {name} and beat it." for name in names
    }
    assert instructions.word("beat_block_hammer", "unseen", np.random.default_rng(0)) == "Hit with the odd hammer."


def test_without_the_package_the_fix_is_said(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match="treadle simulators install robotwin"):
        tasks.package_folder()
