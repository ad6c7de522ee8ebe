"""A crew beside its sessions: queries, interpreters, experts, films, and what it takes of the machine."""

import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fake_simulator import FakeSimulator, Script, TeachingSimulator, scenario
from leftovers import workers_left
from treadle.commands.probe import probe
from treadle.environments.interpreter import Interpreter
from treadle.errors import ConfigError, SimulatorError
from treadle.rollout.sources import ScenarioList
from treadle.simulators.factory import SimulatorFactory
from treadle.workers import queries
from treadle.workers.crew import Crew, CrewPlan
from treadle.workers.failure import WorkerError
from treadle.workers.handles import thread_limits
from treadle.workers.lanes import Arrival, Lanes
from treadle.workers.messages import ExpertSettings, Session

CAUTION = "fake: physics of another version"
PAGES = 900_000 // resource.getpagesize()
KINDS = pytest.mark.parametrize("kind", ["threads", "processes"])


@contextmanager
def crew_of(target: str = "FakeSimulator", slots: int = 2, **fields: Any) -> Iterator[Crew]:
    options = {name: fields.pop(name) for name in ("scripts", "trouble", "once", "nonsense") if name in fields}
    with Crew(CrewPlan(SimulatorFactory(f"fake_simulator:{target}", options), slots, **fields)) as crew:
        yield crew


def play(lanes: Lanes) -> list[Arrival]:
    """Everything that the lanes have to play, without a policy."""
    arrivals: list[Arrival] = []
    open_lanes = sum(lanes.begin(lane) for lane in range(len(lanes)))
    while open_lanes:
        (arrival,) = lanes.ready(1)
        arrivals.append(arrival)
        if arrival.playing:
            lanes.play(arrival.lane)
        elif not lanes.begin(arrival.lane):
            open_lanes -= 1
    return arrivals


def test_checks_in_a_simulators_python_need_numpy_alone():
    code = "import sys, benchmarks.elsewhere; print(sorted({'torch', 'pydantic', 'rich'} & sys.modules.keys()))"
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@KINDS
def test_a_crew_tells_what_its_simulator_is(kind):
    here = FakeSimulator(1)
    with crew_of(kind=kind, slots=3, workers=2, lanes=2) as crew:
        assert (crew.spec, crew.suites) == (here.spec, here.suites())
        assert not crew.teaches
        assert not crew.renders_scenes
        assert crew.count("odd", "evaluation") == 10
        assert crew.scenarios("odd", "evaluation", 3, 7) == list(here.scenarios("odd", "evaluation"))[3:7]
        assert crew.scenarios("train", "train", 18, 500) == [scenario(18), scenario(19)]
        assert crew.call(queries.INSTRUCTIONS, [scenario(2)]) == [here.instructions(scenario(2))]
        assert crew.call(queries.VOCABULARY) is None
    assert not workers_left()


@KINDS
def test_what_makes_figures_incomparable_is_said_once(kind, caplog):
    with crew_of("CautionedSimulator", kind=kind, slots=2, workers=2, lanes=2):
        assert caplog.messages == [CAUTION]


def test_the_doctor_shows_what_makes_figures_incomparable():
    assert probe("fake_simulator:CautionedSimulator").endswith(f"from front; but {CAUTION}")


@KINDS
def test_a_call_that_raises_ends_nobody(kind):
    with crew_of(kind=kind) as crew:
        with pytest.raises(WorkerError, match=r"worker 0 of 1: calling treadle.workers.queries:count: TypeError"):
            crew.call(queries.COUNT)
        with pytest.raises(ConfigError, match=r"module 'treadle.workers.queries' has no function 'nothing'"):
            crew.call("treadle.workers.queries:nothing")
        assert crew.count("train", "train") == 20
        assert crew.restarts == 0


def test_a_call_survives_its_worker():
    with crew_of(kind="processes") as crew:
        os.kill(crew.pids[0], signal.SIGKILL)
        assert crew.count("train", "train") == 20
        assert crew.restarts == 1


def test_libraries_of_a_worker_take_as_many_threads_as_its_simulator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LP_NUM_THREADS", "5")
    factory = SimulatorFactory("treadle.simulators.tabletop:Tabletop", {"threads": 3, "horizon": 4})
    with Crew(CrewPlan(factory, 1, kind="processes")) as crew:
        there = psutil.Process(crew.pids[0]).environ()
    assert (there["OMP_NUM_THREADS"], there["LP_NUM_THREADS"]) == ("3", "5"), "what the user has set holds"
    assert thread_limits(2) == {"OMP_NUM_THREADS": "2", "LP_NUM_THREADS": "2"}
    assert thread_limits(1) == {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


def page_faults(pid: int) -> int:
    """Of a process so far, those that no disk was read for; field `minflt` of proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's memory alone")
def test_memory_of_a_frame_serves_the_next():
    with crew_of("AllocatingSimulator", 1, kind="processes") as crew:
        lanes = Lanes(crew, Session(100), ScenarioList(("train", "train"), [1], crew.rows), 1)

        def faults_of_a_frame(ask: Any) -> int:
            before = page_faults(crew.pids[0])
            ask(0)
            lanes.ready(1)
            return page_faults(crew.pids[0]) - before

        faults = [faults_of_a_frame(lanes.begin), *(faults_of_a_frame(lanes.play) for _ in range(24))]
    assert faults[0] > 140 * PAGES, "nearly all"
    assert max(faults[1:]) < 5 * PAGES, "the four pieces that its thread keeps"


@KINDS
@pytest.mark.parametrize(("slots", "lanes", "workers"), [(1, 1, 1), (5, 2, 2), (7, 3, 2), (4, 2, 4)])
def test_a_list_is_played_whole_whatever_the_lanes(kind, slots, lanes, workers):
    scripts = {i: Script(ends=1 + i % 4, succeeds=(2,)) for i in range(0, 20, 3)}
    with crew_of(slots=slots, lanes=lanes, workers=workers, kind=kind, scripts=scripts) as crew:
        source = ScenarioList(("train", "evaluation"), range(13), crew.rows)
        results = {
            result.scenario.index: result
            for arrival in play(Lanes(crew, Session(6), source, 2))
            for result in arrival.episodes
        }
    assert sorted(results) == list(range(13))
    for index, result in results.items():
        steps = scripts[index].ends if index in scripts else 6
        assert (result.length, result.episode_return) == (steps, steps * (steps + 1) / 2)
        assert result.success_once == (index in scripts and steps is not None and steps >= 2)


@KINDS
def test_an_expert_acts_where_the_simulator_is(kind):
    """Its actions are on the buffer, and earn what they say."""
    with crew_of("TeachingSimulator", 3, workers=2, kind=kind) as crew:
        assert crew.teaches
        assert crew.call(queries.VOCABULARY) == TeachingSimulator(1).vocabulary()
        source = ScenarioList(("train", "train"), [3, 5, 7], crew.rows)
        lanes = Lanes(crew, Session(2, expert=ExpertSettings(0)), source, 1)
        lanes.begin(0)
        (first,) = lanes.ready(1)
        assert first.playing
        for step in range(2):
            lanes.play(0)
            (arrival,) = lanes.ready(1)
            assert lanes.buffer.actions[:, 0].tolist() == [[3, step], [5, step], [7, step]]
        assert [result.episode_return for result in arrival.episodes] == [3 + 2 * index for index in (3, 5, 7)]


def test_an_expert_is_lost_with_its_worker():
    with crew_of("TeachingSimulator", 2, workers=2, kind="processes") as crew:
        source = ScenarioList(("train", "train"), range(4), crew.rows)
        lanes = Lanes(crew, Session(9, expert=ExpertSettings(0)), source, 1)
        lanes.begin(0)
        lanes.ready(1)
        os.kill(crew.pids[1], signal.SIGKILL)
        lanes.play(0)
        with pytest.raises(SimulatorError, match="scripted expert is lost"):
            lanes.ready(1)


@KINDS
def test_a_simulator_without_expert_is_refused(kind):
    with crew_of(kind=kind) as crew:
        source = ScenarioList(("train", "train"), [0], crew.rows)
        lanes = Lanes(crew, Session(2, expert=ExpertSettings(0)), source, 1)
        lanes.begin(0)
        with pytest.raises(ConfigError, match="'fake' brings no scripted expert"):
            lanes.ready(1)


def test_jitter_is_in_metres_and_belongs_to_the_scenario():
    """What is played differs from what is reported, by as much as was asked, whatever the slots."""
    found = []
    for slots in (1, 4):
        with crew_of("TeachingSimulator", slots) as crew:
            source = ScenarioList(("train", "train"), range(4), crew.rows)
            lanes = Lanes(crew, Session(6, expert=ExpertSettings(0, jitter=0.1, jitter_seed=7)), source, 1)
            results = {r.scenario.index: r.episode_return for arrival in play(lanes) for r in arrival.episodes}
        found.append({index: results[index] - (21 + 6 * index) for index in results})
    assert found[0] == pytest.approx(found[1])
    assert len({round(x, 5) for x in found[0].values()}) == 4
    assert 0.01 < np.std(list(found[0].values())) < 3


@KINDS
def test_films_begin_before_the_first_action(kind):
    with crew_of(slots=2, kind=kind, scripts={0: Script(ends=1), 2: Script(ends=4)}) as crew:
        source = ScenarioList(("train", "evaluation"), range(3), crew.rows)
        frames: dict[int, list[int]] = {}
        for arrival in play(Lanes(crew, Session(10, film=8), source, 3)):
            for what, frame in arrival.frames:
                assert frame.shape == (8, 8, 3)
                frames.setdefault(what.index, []).append(int(frame[0, 0, 0]))
    assert frames == {0: [0, 1], 1: list(range(11)), 2: list(range(5))}


def test_a_worker_is_sent_nothing_before_it_reads():
    """A restored state larger than a pipe must not block while the simulator is built."""
    with crew_of(kind="processes") as crew:
        (handle,) = crew._handles
        handle._waiting = []
        handle.send("later")
        assert handle._waiting == ["later"]
        handle._waiting = None


@KINDS
def test_a_simulator_that_cannot_be_built_is_no_fault_to_try_again(kind):
    with (
        pytest.raises(WorkerError, match=r"worker 0 of 1: building the simulator: TypeError.*nonsense"),
        crew_of(kind=kind, nonsense=1),
    ):
        pass
    assert not workers_left()


def test_an_interpreter_that_is_not_there():
    factory = SimulatorFactory("no_such_module:Class", {}, Interpreter(sys.executable))
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module:Class'"):
        Crew(CrewPlan(factory, 1, kind="processes"))
    missing = SimulatorFactory("no_such_module:Class", {}, Interpreter("/no/python"))
    with pytest.raises(SimulatorError, match=r"cannot start /no/python"):
        Crew(CrewPlan(missing, 1, kind="processes"))
    assert not workers_left()
