"""The benchmark of simulators runs, and writes what it promises."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import playing, simulator
from treadle.config.loading import read_config
from treadle.errors import ConfigError


@pytest.mark.integration
def test_simulator(tmp_path: Path):
    file = tmp_path / "bench.json"
    simulator.run("tabletop", file, slots=[1, 3], threads=[2], seconds=0)
    written = json.loads(file.read_text())
    assert written["control_steps_per_second"] > 0
    assert written["bare_control_steps_per_second"] > 0
    low, high = written["overhead_interval"]
    assert low <= written["overhead_share"] <= high
    assert written["pairs"] == 3
    assert written["speedups"] == [], "all of it is in this process"
    assert [(row["slots"], row["threads"], row["processes"]) for row in written["measurements"]] == [
        (1, 2, 0),
        (3, 2, 0),
    ]
    assert written["checkpoint"] == "tabletop-base"
    assert all(row["policy_forward_seconds"] > 0 for row in written["measurements"])
    assert all(row["without_rendering"] > 0 and row["frame_per_step"] > 0 for row in written["measurements"])


def test_shares_and_speedups_are_medians_over_turns():
    # Turns in which two processes took as long as one for twice the work, twice as long, and half as long.
    assert simulator.faster([1.0, 1.0, 8.0], [1.0, 2.0, 4.0], 2) == 2
    shares = np.array([0.1] * 50 + [0.2] + [0.3] * 50)
    assert simulator.interval_of_median(shares) == (0.1, 0.3)
    assert simulator.interval_of_median(np.full(9, 0.04)) == (0.04, 0.04)


def test_figures_of_several_starts_are_their_medians_and_all_their_rounds():
    def speedup(rate: float, bare: float, turns: int) -> simulator.Speedup:
        return simulator.Speedup(2, rate, 1.5 * rate, 2 * rate, 3 * rate, bare, turns)

    starts = [speedup(1.0, 1.8, 3), speedup(4.0, 1.2, 5), speedup(2.0, 1.9, 4)]
    assert simulator.over_starts(starts) == speedup(2.0, 1.8, 12)
    row = simulator.Measurement(1, 2, 3, 10.0, 20.0, 30.0, None, 4)
    other = simulator.Measurement(1, 2, 3, 20.0, 30.0, 50.0, None, 6)
    assert simulator.over_starts([row, other]) == simulator.Measurement(1, 2, 3, 15.0, 25.0, 40.0, None, 10)


@pytest.mark.integration
def test_processes_are_compared_in_turn_with_loops_that_know_nothing_of_each_other(tmp_path: Path, capsys):
    file = tmp_path / "bench.json"
    python = f"simulator.python={sys.executable}"
    simulator.run("tabletop", file, overrides=[python, "slots_per_process=2"], slots=[1, 2, 3], seconds=0, starts=2)
    assert "start 2 of 2" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert [(row["processes"], row["slots"]) for row in written["measurements"]] == [(1, 2), (2, 4), (3, 6)]
    assert [row["processes"] for row in written["speedups"]] == [2, 3]
    assert all(row["bare_loops"] > 0 and row["frame_per_step"] > 0 < row["lanes"] for row in written["speedups"])
    assert all(row["turns"] == 2 * 3 for row in written["speedups"])
    assert written["pairs"] == 2 * 3
    for start in written["starts"]:
        assert [row["rounds"] for row in start["measurements"]] == [3, 3, 3]
        assert start["pairs"] == start["speedups"][0]["turns"] == 3
    middle = sum(start["speedups"][1]["bare_loops"] for start in written["starts"]) / 2
    assert written["speedups"][1]["bare_loops"] == pytest.approx(middle)


def test_settings_of_the_simulator_alone_are_taken():
    with pytest.raises(ConfigError, match="policy"):
        simulator.run("tabletop", None, overrides=["policy.kind=openvla"])
    with pytest.raises(ConfigError, match=r"slots_per_process=4 with simulator 'tabletop'.*--slots 4"):
        simulator.run("tabletop", None, overrides=["slots_per_process=4"])
    with pytest.raises(ConfigError, match="image_sise"):
        simulator.run("tabletop", None, overrides=["simulator.options.image_sise=64"])


@pytest.mark.integration
def test_every_slot_has_the_same_to_do_in_lanes_and_out_of_them():
    overrides = ["simulator.name=tabletop", f"simulator.python={sys.executable}"]
    config = read_config(simulator.SimulatorBenchConfig, None, overrides).simulator
    config = config.model_copy(update={"slots": 4, "threads": 1})
    with closing(playing.PlayingInWorkers(config, 2, lanes=2)) as lanes:
        buffer = lanes._lanes.buffer
        assert [(rows.start, rows.stop) for rows in lanes._lanes.rows] == [(0, 2), (2, 4)]
        for played in (1, 2):
            lanes.play_on()
            assert buffer.elapsed.tolist() == [played * playing.LONGER * playing.STEPS] * 4
        assert len(set(buffer.scenario_index.tolist())) == 1
        assert np.ptp(buffer.observation.state, axis=0).max() == 0
    for opened in (
        playing.PlayingInWorkers(config, 2),
        playing.PlayingHere(config.model_copy(update={"python": None})),
    ):
        with closing(opened) as together:
            before, play = together.with_frames(playing.CHUNK)
            before()
            play()
            seen, _ = together.seen()
            assert np.ptp(seen.state, axis=0).max() == 0


@pytest.mark.integration
def test_workers_that_show_nothing_play_as_those_that_do():
    overrides = ["simulator.name=tabletop", f"simulator.python={sys.executable}", "simulator.slots=2"]
    config = read_config(simulator.SimulatorBenchConfig, None, overrides).simulator
    with closing(playing.PlayingInWorkers(config, 2)) as workers:
        before, play = workers.unseen
        before()
        first = workers.seen()[0].frames.copy()
        play()
        assert np.array_equal(workers.seen()[0].frames, first)
        assert workers._lanes.buffer.elapsed.tolist() == [playing.LONGER * playing.STEPS] * 2
        workers.begin(1)
        first = workers.seen()[0].frames.copy()
        workers.step(workers.actions[:, :1] + 1)
        assert not np.array_equal(workers.seen()[0].frames, first)


@pytest.mark.integration
def test_starts_that_were_measured_are_kept_when_a_later_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, started, start = tmp_path / "bench.json", iter(range(2)), simulator._start

    def twice(*arguments: Any):
        next(started)
        return start(*arguments)

    monkeypatch.setattr(simulator, "_start", twice)
    with pytest.raises(StopIteration):
        simulator.run("tabletop", file, slots=[1], threads=[1], seconds=0, starts=3)
    written = json.loads(file.read_text())
    assert len(written["starts"]) == 2
    assert written["measurements"][0]["rounds"] == sum(s["measurements"][0]["rounds"] for s in written["starts"])
