"""A worker that fails is replaced, and the rollout is what it would have been; what fails always ends the run."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fake_lanes import assert_same, collect, make_collector, opened, plan
from fakes import FakePolicy
from leftovers import workers_left
from treadle.errors import SimulatorError
from treadle.workers.crew import ATTEMPTS


@pytest.fixture(scope="module")
def undisturbed():
    return collect(plan())


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [
        ("processes", "die"),
        ("processes", "hang"),
        ("processes", "raise"),
        ("processes", "reset-die"),
        ("processes", "reset-raise"),
        ("threads", "raise"),
        ("threads", "reset-refuse"),
    ],
)
def test_a_rollout_with_faults_is_the_same_as_without(undisturbed, kind, trouble, tmp_path: Path, caplog):
    """Two scenarios of every four bring their worker down, in the middle of an episode, each once."""
    bad = {i: trouble for i in range(20) if i % 4 in (0, 1)} if trouble != "hang" else {5: trouble}
    chosen = plan(
        lanes=3, workers=2, kind=kind, trouble=bad, once=str(tmp_path), after=0 if "reset" in trouble else 2, timeout=4
    )
    policy: Any = FakePolicy()
    with caplog.at_level(logging.WARNING), opened(chosen) as (lanes, stream):
        collector = make_collector(lanes, stream, policy)
        rollouts = [collector.collect(count, version=i) for i, count in enumerate((4, 3))]
        assert lanes.crew.restarts == len(caplog.records) > 0
    for one, other in zip(undisturbed, rollouts, strict=True):
        assert_same(one, other)
    assert "Its slots restart with their scenarios" in caplog.text
    assert "fake/train/train/" in caplog.text
    assert not workers_left()


@pytest.mark.parametrize("trouble", ["raise", "reset-raise"])
def test_rounds_go_on_after_faults(trouble, tmp_path: Path):
    stream = {"group_size": 2, "partial_reset": False, "keep_final": "none"}
    bad = dict.fromkeys(range(20), trouble)
    one = collect(plan(6, **stream), (3, 3))
    other = collect(plan(6, **stream, lanes=2, trouble=bad, once=str(tmp_path)), (3, 3))
    for left, right in zip(one, other, strict=True):
        assert_same(left, right)


def test_a_worker_that_dies_between_two_chunks_is_replaced(undisturbed):
    policy: Any = FakePolicy()
    with opened(plan(kind="processes", workers=2, lanes=2)) as (lanes, stream):
        collector = make_collector(lanes, stream, policy)
        assert_same(undisturbed[0], collector.collect(4, version=0))
        state = lanes.state_dict()
        for pid in lanes.crew.pids:
            os.kill(pid, signal.SIGKILL)
            psutil.Process(pid).wait(10)
        assert lanes.state_dict() == state, "it is known here where everything stands"
        assert_same(undisturbed[1], collector.collect(3, version=1))
        assert lanes.crew.restarts == 2


def test_what_always_kills_its_worker_ends_the_run_with_name_and_scenarios():
    with pytest.raises(SimulatorError) as caught:
        collect(plan(4, lanes=4, workers=2, kind="processes", trouble=dict.fromkeys(range(20), "die")))
    said = str(caught.value)
    assert "its process was ended by signal SIGKILL" in said
    assert "playing slot" in said
    assert "it serves lanes" in said
    assert f"({ATTEMPTS} times in a row)" in said
    assert "the same command goes on from the last checkpoint" in said
    assert not workers_left()


def test_no_memory_stays_with_replaced_workers(tmp_path: Path):
    shared, before = set(Path("/dev/shm").iterdir()), psutil.Process().num_fds()
    bad = dict.fromkeys((5, 6), "die")
    collect(plan(lanes=2, workers=2, kind="processes", trouble=bad, once=str(tmp_path)))
    assert set(Path("/dev/shm").iterdir()) == shared
    assert psutil.Process().num_fds() <= before


def alive(folder: Path, wait: float = 0.0) -> list[int]:
    """Processes that are noted in a folder, and have not ended, also when they are given time."""
    end = time.monotonic() + wait
    while True:
        numbers = [int(path.name) for path in folder.iterdir()]
        left = [n for n in numbers if psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() >= end:
            return left
        time.sleep(0.05)


def test_the_end_of_a_worker_is_seen_and_takes_its_family_with_it(undisturbed, tmp_path: Path):
    """A process that the simulator forked holds the worker's connection open."""
    family, once = tmp_path / "family", tmp_path / "once"
    family.mkdir()
    once.mkdir()
    chosen = plan(
        target="FamilySimulator", kind="processes", trouble={5: "die"}, once=str(once), after=2, family=str(family)
    )
    policy: Any = FakePolicy()
    with opened(chosen) as (lanes, stream):
        collector = make_collector(lanes, stream, policy)
        rollouts = [collector.collect(count, version=i) for i, count in enumerate((4, 3))]
        assert lanes.crew.restarts == 1
        assert len(list(family.iterdir())) == 4, "two of each worker"
        assert len(alive(family)) == 2
    for one, other in zip(undisturbed, rollouts, strict=True):
        assert_same(one, other)
    assert not alive(family, wait=30)


FAMILY = """
import sys, time
sys.path.insert(0, {tests!r})
from fake_lanes import plan, opened
with opened(plan(target="FamilySimulator", kind="processes", family={family!r})) as (lanes, _):
    print(*lanes.crew.pids, flush=True)
    time.sleep(600)
"""


def test_nothing_outlives_a_trainer_that_is_killed(tmp_path: Path):
    code = FAMILY.format(tests=str(Path(__file__).parents[1]), family=str(tmp_path))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env) as trainer:
        assert trainer.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 1
        assert len(alive(tmp_path)) == 2
        trainer.kill()
        assert not psutil.wait_procs(workers, timeout=30)[1]
    assert not alive(tmp_path, wait=30)
