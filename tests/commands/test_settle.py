"""The probe of stored states, on a simulator whose things slide as far as it says."""

import json

import pytest
from typer.testing import CliRunner

from fake_simulator import scenario
from treadle.cli import app
from treadle.commands.settle import TaskSettling, probe_settling
from treadle.errors import ConfigError

NAME = "fake_simulator:SettlingSimulator"


def test_tasks_whose_states_slide_are_flagged():
    heard = []
    report = probe_settling(NAME, ["train"], 50, None, heard.append)
    still, sliding = report["tasks"]
    # States 0, 1, 2 of task 1: 2.5, 3.5 and 4.5 cm; the evaluation split's state is one of them.
    assert (sliding["task"], sliding["number"], sliding["thing"], sliding["states"]) == ("task1", 1, "cup", 3)
    assert (sliding["median"], sliding["largest"], sliding["slides"]) == (0.035, 0.045, True)
    assert (still["thing"], still["median"], still["slides"]) == ("ball", 0.002, False)
    assert [task.number for task in heard] == [0, 1]
    assert report["physics"] == "Fake 1.0"


def test_fewer_states_are_spread():
    (_, sliding) = probe_settling(NAME, ["train"], 2, None, lambda _: None)["tasks"]
    assert (sliding["states"], sliding["median"]) == (2, 0.025)


def test_the_command_lists_what_moves_and_fails_where_something_slides(tmp_path):
    path = tmp_path / "settling.json"
    result = CliRunner().invoke(app, ["simulators", "settle", NAME, "--json", str(path)])
    assert result.exit_code == 1
    assert "3.5" in result.stdout
    assert "1 other tasks" in result.stdout
    assert len(json.loads(path.read_text())["tasks"]) == 2
    assert CliRunner().invoke(app, ["simulators", "settle", NAME, "--states", "1"]).exit_code == 0


def test_a_simulator_without_stored_states_is_refused():
    with pytest.raises(ConfigError, match="has no stored states"):
        probe_settling("fake_simulator:CautionedSimulator", ["train"], 1, None, lambda _: None)


def test_a_misspelt_suite_is_named_before_anything_rests():
    result = CliRunner().invoke(app, ["simulators", "settle", NAME, "--suite", "trian"])
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: --suite: fake has no suite 'trian', did you mean 'train'?; choose from train"
    )


def test_the_thing_that_slides_in_one_state_is_named_where_the_others_rest():
    moved = [{"cup": 0.0001, "ball": 0.0}, {"cup": 0.0001, "ball": 0.0}, {"cup": 0.0001, "ball": 0.09}]
    found = TaskSettling.of(scenario(0), 0, moved)
    assert (found.thing, found.median, found.largest, found.slides) == ("ball", 0.0, 0.09, False)
