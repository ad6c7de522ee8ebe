"""What is read from the sources of RoboTwin's tasks."""

import pytest

from treadle.errors import SimulatorError
from treadle.simulators.robotwin import tasks
from treadle.simulators.robotwin.tasks import HORIZONS, TASKS, objects_used


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


def test_without_the_package_the_fix_is_said(monkeypatch):
    monkeypatch.setattr(tasks, "find_spec", lambda name: None)
    with pytest.raises(SimulatorError, match="treadle simulators install robotwin"):
        tasks.package_folder()
