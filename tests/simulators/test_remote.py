"""Simulators in worker processes: the same as here; faults; and a Python of their own."""

import logging
import os
import platform
import resource
import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import pytest

from fake_simulator import FakeSimulator, Script, TeachingSimulator, scenario
from treadle.data.observation import Observation
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import Host, KeepFinal, one_after_another
from treadle.simulators.process import Interpreter, WorkerError, thread_limits
from treadle.simulators.protocol import SceneTeacher, Simulator, Teacher
from treadle.simulators.remote import open_remote

PAGES = 900_000 // resource.getpagesize()
"""Of a piece of memory that an `AllocatingSimulator` takes."""
SCRIPTS = {i: Script(ends=3 + i % 5, succeeds=(2,)) for i in range(0, 20, 2)}


def remote(slots: int = 5, processes: int = 2, kind: str = "DelayedSimulator", timeout: float = 60, **options: Any):
    factory = SimulatorFactory(f"fake_simulator:{kind}", {"scripts": SCRIPTS, **options}, Interpreter(sys.executable))
    return open_remote(factory, slots, processes, timeout)


def play(simulator: Simulator, keep: KeepFinal = "truncated") -> tuple[list[Any], list[np.ndarray]]:
    """Episodes of twelve scenarios with random actions, and every observation."""
    host = Host(simulator, one_after_another([scenario(i) for i in range(12)]), 10, keep_final=keep)
    rng = np.random.default_rng(0)
    results, seen = [], []
    host.start()
    while len(host.playing):
        step = host.step(rng.random((simulator.slots, 4, 2), np.float32))
        results += step.episodes
        seen += [host.observation.frames.copy(), host.observation.state.copy(), step.final.state]
    return results, seen


def page_faults(pid: int) -> int:
    """Of a process so far, those that no disk was read for; field `minflt` of proc(5)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def assert_same(one, other) -> None:
    assert one[0] == other[0]
    assert all(np.array_equal(left, right) for left, right in zip(one[1], other[1], strict=True))


def test_slots_in_processes_play_as_they_do_here():
    with_closing = remote(processes=2)
    try:
        for keep in get_args(KeepFinal):
            assert_same(play(with_closing, keep), play(FakeSimulator(5, SCRIPTS), keep))
        assert with_closing.spec == FakeSimulator(1).spec
        assert with_closing.suites() == FakeSimulator(1).suites()
        here, there = (simulator.scenarios("odd", "evaluation") for simulator in (FakeSimulator(1), with_closing))
        assert (list(here), here[3:7], here[-1]) == (list(there), there[3:7], there[-1])
        assert with_closing.instructions(scenario(2)) == FakeSimulator(1).instructions(scenario(2))
        slots = np.array([4, 0, 2])
        assert with_closing.render(slots, 6).shape == (3, 6, 6, 3)
    finally:
        with_closing.close()
        with_closing.close()
    assert not psutil.Process().children(recursive=True)


def test_libraries_of_a_worker_take_as_many_threads_as_its_simulator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LP_NUM_THREADS", "5")
    factory = SimulatorFactory("treadle.simulators.tabletop:Tabletop", {"threads": 3, "horizon": 4})
    with closing(open_remote(factory, 1, 1)) as opened:
        there = psutil.Process(opened.pids[0]).environ()
    assert (there["OMP_NUM_THREADS"], there["LP_NUM_THREADS"]) == ("3", "5"), "what the user has set holds"
    assert thread_limits(2) == {"OMP_NUM_THREADS": "2", "LP_NUM_THREADS": "2"}
    assert thread_limits(1) == {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's memory alone")
def test_memory_of_a_frame_serves_the_next():
    with closing(open_remote(SimulatorFactory("fake_simulator:AllocatingSimulator", {}), 1, 1)) as opened:
        slot, out = np.arange(1), Observation.empty(1, 1, 4, 4, 2, 2)
        opened.reset(slot, [scenario(1)])

        def faults_of_a_frame() -> int:
            before = page_faults(opened.pids[0])
            opened.observe(slot, out)
            return page_faults(opened.pids[0]) - before

        faults = [faults_of_a_frame() for _ in range(25)]
    assert faults[0] > 152 * PAGES
    assert max(faults[1:]) < 5 * PAGES, "the four pieces that its thread keeps"


def test_only_what_was_asked_for_is_written():
    simulator = remote(3, 3)
    out = Observation.empty(3, 1, 4, 4, 2, 2)
    simulator.reset(np.array([0, 2]), [scenario(7), scenario(8)])
    simulator.observe(np.array([2]), out)
    simulator.close()
    assert out.frames[:, 0, 0, 0, 0].tolist() == [0, 0, 8]
    assert out.instructions == ["", "", "do 8"]


@pytest.mark.parametrize("trouble", ["die", "raise", "reset-die", "reset-refuse"])
def test_episodes_with_faults_are_the_same_as_without(trouble, tmp_path: Path, caplog):
    shared, files = set(Path("/dev/shm").iterdir()), psutil.Process().num_fds()
    bad = {i: trouble for i in range(12) if i % 3 == 0}
    with caplog.at_level(logging.WARNING):
        simulator = remote(trouble=bad, once=str(tmp_path), after=0 if "reset" in trouble else 2)
        try:
            assert_same(play(simulator), play(FakeSimulator(5, SCRIPTS)))
        finally:
            simulator.close()
    # Scenarios 0 and 6 end in their first chunk.
    assert len(caplog.records) == (4 if "reset" in trouble else 2)
    assert "fake/train/train/000003" in caplog.text
    del simulator
    assert not psutil.Process().children(recursive=True)
    assert set(Path("/dev/shm").iterdir()) == shared
    assert psutil.Process().num_fds() <= files


def test_a_hung_worker_is_replaced(tmp_path: Path):
    simulator = remote(trouble={3: "hang"}, once=str(tmp_path), timeout=3)
    try:
        assert_same(play(simulator), play(FakeSimulator(5, SCRIPTS)))
    finally:
        simulator.close()


def test_a_worker_killed_between_two_calls_is_replaced():
    simulator = remote(2, 1)
    simulator.reset(np.arange(2), [scenario(1), scenario(3)])
    os.kill(simulator.pids[0], signal.SIGKILL)
    time.sleep(0.2)
    outcome = simulator.step(np.arange(2), np.zeros((2, 2, 2), np.float32), np.full(2, 2))
    simulator.close()
    assert outcome.reward.tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("trouble", "error", "said"),
    [
        (
            "refuse",
            SimulatorError,
            r"worker 0 of 1: step_and_observe, playing fake/train/train/000004: no such cube \(3 times",
        ),
        ("raise", WorkerError, r"ValueError: a bolt is loose \(3 times in a row\)\n\nTraceback"),
        ("die", SimulatorError, r"ended by signal SIGKILL.*\(3 times"),
    ],
)
def test_what_fails_always_is_raised(trouble, error, said):
    simulator = remote(1, trouble={4: trouble})
    simulator.reset(np.zeros(1, int), [scenario(4)])
    with pytest.raises(error, match=said):
        simulator.step(np.zeros(1, int), np.zeros((1, 1, 2), np.float32), np.ones(1, int))
    simulator.close()


def test_a_simulator_that_cannot_be_built_is_no_fault_to_try_again():
    with pytest.raises(WorkerError, match=r"worker 0 of 1: building the simulator: TypeError.*nonsense"):
        remote(1, nonsense=1)
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module:Class'"):
        open_remote(SimulatorFactory("no_such_module:Class", {}, Interpreter(sys.executable)), 1, 1)
    with pytest.raises(SimulatorError, match=r"cannot start /no/python"):
        open_remote(SimulatorFactory("no_such_module:Class", {}, Interpreter("/no/python")), 1, 1)
    assert not psutil.Process().children(recursive=True)


def test_an_expert_acts_where_the_simulator_is():
    simulator = remote(3, 2, "TeachingSimulator")
    try:
        assert isinstance(simulator, Teacher)
        assert not isinstance(simulator, SceneTeacher)
        assert simulator.vocabulary() == TeachingSimulator(1).vocabulary()
        expert = simulator.expert(0)
        slots = np.arange(3)
        simulator.reset(slots, [scenario(i) for i in (3, 5, 7)])
        simulator.step(slots[1:], np.zeros((2, 1, 2), np.float32), np.ones(2, int))
        assert expert.act(slots).tolist() == [[3, 0], [5, 1], [7, 1]]
        assert expert.act(np.array([2])).tolist() == [[7, 1]]
        os.kill(simulator.pids[1], signal.SIGKILL)
        with pytest.raises(SimulatorError, match="scripted expert is lost"):
            expert.act(slots)
    finally:
        simulator.close()


def test_a_simulator_without_expert_is_no_teacher():
    simulator = remote(1, 1)
    simulator.close()
    assert not isinstance(simulator, Teacher)
