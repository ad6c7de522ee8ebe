"""Lanes: the same rollouts whatever the lanes, workers and delays; and clear ends when something goes wrong."""

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_lanes import assert_same, collect, make_collector, make_lanes, opened, plan
from fakes import FakePolicy, indices
from leftovers import workers_left
from miniature import SIMULATOR, make_policy
from treadle.data.rollout import Rollout
from treadle.errors import ConfigError, SimulatorError
from treadle.policies.protocol import Sampling
from treadle.rollout.actor import Actor, join_rows
from treadle.rollout.collector import Collector
from treadle.rollout.sources import ScenarioStream
from treadle.simulators.build import simulator_factory
from treadle.simulators.factory import SimulatorFactory
from treadle.workers import queries
from treadle.workers.crew import Crew, CrewPlan, check_dimensions
from treadle.workers.failure import WorkerError
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.partition import partition


@pytest.fixture(scope="module")
def lockstep() -> list[Rollout]:
    return collect(plan())


@settings(max_examples=12, deadline=None)
@given(lanes=st.integers(1, 7), workers=st.integers(1, 7), batch=st.integers(1, 4), delays=st.integers(0, 2**20))
def test_a_rollout_does_not_depend_on_lanes_workers_batches_or_delays(lockstep, lanes, workers, batch, delays):
    rollouts = collect(plan(lanes=lanes, workers=workers, delays=delays), batch=batch)
    for one, other in zip(lockstep, rollouts, strict=True):
        assert_same(one, other)


@settings(max_examples=6, deadline=None)
@given(lanes=st.integers(1, 6), group_size=st.integers(1, 4), delays=st.integers(1, 2**20))
def test_rounds_of_groups_are_whole_whatever_the_lanes(lanes, group_size, delays):
    stream = {"group_size": group_size, "partial_reset": False, "keep_final": "none"}
    one = collect(plan(6, **stream), (3, 3))
    other = collect(plan(6, **stream, lanes=lanes, delays=delays), (3, 3))
    for left, right in zip(one, other, strict=True):
        assert len(right.episodes) == 6, "each slot's episode once"
        assert_same(left, right)


@pytest.mark.parametrize(("lanes", "workers"), [(1, 1), (2, 1), (3, 2), (2, 5)])
def test_processes_play_the_same(lockstep, lanes, workers):
    for one, other in zip(lockstep, collect(plan(lanes=lanes, workers=workers, kind="processes")), strict=True):
        assert_same(one, other)


def test_a_state_goes_from_one_number_of_lanes_to_another(lockstep):
    policy: Any = FakePolicy()

    with opened(plan(lanes=3)) as three, opened(plan(lanes=2, workers=3)) as two:
        one, other = (make_collector(*lanes, policy) for lanes in (three, two))
        one.collect(4, version=0)
        other.load_state_dict(one.state_dict())
        assert_same(lockstep[1], one.collect(3, version=1))
        assert_same(lockstep[1], other.collect(3, version=1))


@given(slots=st.integers(1, 40), lanes=st.integers(1, 40), workers=st.integers(1, 40))
def test_slots_are_divided_without_rest(slots, lanes, workers):
    lanes, workers = min(slots, lanes), min(slots, workers)
    parts = partition(slots, lanes, workers)
    assert len(parts) == workers
    played = sorted(slot for worker in parts for part in worker for slot in range(part.first, part.stop))
    assert played == list(range(slots)), "each slot once"
    sizes = [sum(p.stop - p.first for worker in parts for p in worker if p.lane == lane) for lane in range(lanes)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    if workers >= lanes:
        assert all(len(worker) <= 1 for worker in parts)
    else:
        assert all(parts)


def test_lanes_are_served_as_they_get_ready_and_one_that_hangs_is_named():
    """Lane 0 hangs on its first chunk; the others do all that they have to before its time is over."""
    first = collect(plan(3), (1,))[0].scenarios[0, 0].index
    policy: Any = FakePolicy()
    with opened(plan(3, lanes=3, workers=3, trouble={first: "hang"}, timeout=3.0)) as (lanes, stream):
        collector = make_collector(lanes, stream, policy)
        with pytest.raises(SimulatorError) as caught:
            collector.collect(4, version=0)
    said = str(caught.value)
    # Its thread cannot be ended, so nobody can take its place.
    assert f"simulate, worker 0 of 3: no answer for 3 s (lane 0, playing slot 0: fake/train/train/{first:06d})" in said
    assert "collection.timeout" in said
    # Lane 0 was decided for once, lanes 1 and 2 four times, and they were valued at the end.
    assert len(policy.frames) >= 1 + 2 * 4 + 2


@pytest.mark.parametrize("kind", ["threads", "processes"])
@pytest.mark.parametrize(
    ("trouble", "error", "said"),
    [
        (
            "refuse",
            SimulatorError,
            r"^simulate, worker \d of 2: lane \d, playing fake/.*: no such cube \(3 times",
        ),
        ("raise", WorkerError, r"simulate, worker \d of 2: lane \d.*ValueError: a bolt is loose.*\n\nTraceback"),
    ],
)
def test_what_a_worker_raises_is_raised_here(kind, trouble, error, said):
    with pytest.raises(error, match=said):
        collect(plan(4, lanes=2, workers=2, kind=kind, trouble=dict.fromkeys(range(20), trouble)))
    assert not workers_left()


def test_a_killed_worker_ends_the_run_with_its_name_and_scenarios():
    with pytest.raises(SimulatorError) as caught:
        collect(plan(4, lanes=4, workers=2, kind="processes", trouble=dict.fromkeys(range(20), "die")))
    said = str(caught.value)
    assert "its process was ended by signal SIGKILL" in said
    assert "playing slot" in said
    assert "it serves lanes" in said
    assert "the same command goes on from the last checkpoint" in said
    assert not workers_left()


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_simulator_that_cannot_be_built(kind):
    factory = SimulatorFactory("fake_simulator:DelayedSimulator", {"nonsense": 1})
    with pytest.raises(WorkerError, match=r"worker 0 of 1: building the simulator: TypeError.*nonsense"):
        Crew(CrewPlan(factory, 2, kind=kind))
    missing = SimulatorFactory("no_such_module:Class", {})
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module:Class'"):
        Crew(CrewPlan(missing, 2, kind=kind))


def open_files() -> int:
    gc.collect()  # mapped memory goes with its last array
    return psutil.Process().num_fds()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /dev/shm")
def test_nothing_is_left_behind():
    shared = set(Path("/dev/shm").iterdir())
    before, threads = open_files(), psutil.Process().num_threads()
    for kind in ("threads", "processes"):
        crew = Crew(plan(lanes=2, workers=2, kind=kind).crew)
        lanes, _ = make_lanes(crew, plan())
        assert lanes.begin(0)
        crew.close()
        crew.close()
        del lanes, crew  # and with them the buffer, which maps the memory
    assert open_files() == before
    assert psutil.Process().num_threads() == threads
    assert set(Path("/dev/shm").iterdir()) == shared, "the memory has no name"
    assert not workers_left()


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files")
def test_a_session_leaves_nothing_open_in_its_worker():
    """A run has two for each of its evaluations; Python may look for circles much later."""
    found: list[list[int]] = []
    with Crew(plan(lanes=2, workers=2, kind="processes").crew) as crew:
        for _ in range(3):
            lanes, _ = make_lanes(crew, plan())
            assert lanes.begin(0)
            for worker in range(2):
                crew.call(queries.COUNT, "train", "train", worker=worker)
            found.append([psutil.Process(pid).num_fds() for pid in crew.pids])
    assert found[0] == found[1] == found[2]


MAIN = """
import signal
from treadle.rollout.sources import ScenarioStream
from treadle.simulators.factory import SimulatorFactory
from treadle.workers.crew import Crew, CrewPlan
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session

# A shell may have started the tests in the background, where Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
factory = SimulatorFactory("fake_simulator:DelayedSimulator", {"trouble": dict.fromkeys(range(20), "hang")})
with Crew(CrewPlan(factory, 2, lanes=2, workers=2, kind="processes")) as crew:
    lanes = Lanes(crew, Session(5), ScenarioStream(20, 2, 0), 2)
    for lane in range(2):
        lanes.begin(lane)
    for _ in range(2):
        lanes.play(lanes.ready(1)[0].lane)
    print(*crew.pids, flush=True)
    lanes.ready(1)
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_even_in_the_middle_of_a_step(end):
    """Ctrl-C, and ends that leave no time to say good-bye; the workers are in a step of a minute."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-c", MAIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    ) as main:
        assert main.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
        main.send_signal(end)
        gone, alive = psutil.wait_procs(workers, timeout=30)
    for process in alive:
        process.kill()
    assert len(gone) == 2
    assert main.returncode != 0


def test_a_worker_imports_neither_torch_nor_the_configuration():
    """Nor anything beside numpy and the standard library, which is all that a simulator's own Python needs to have."""
    code = (
        "import json, sys, treadle.workers.worker; "
        "files = {name: getattr(module, '__file__', None) for name, module in sys.modules.items()}; "
        "found = {name.partition('.')[0] for name, file in files.items() if file}; "
        "print(json.dumps(sorted(found - set(sys.stdlib_module_names) - {'__main__'})))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == ["numpy", "treadle"]


def test_frames_stay_where_the_simulator_wrote_them():
    policy: Any = FakePolicy()
    with opened(plan(lanes=2, kind="processes")) as (lanes, _):
        assert [lanes.begin(lane) for lane in range(2)] == [True, True]
        arrived = lanes.ready(2)
        while len(arrived) < 2:
            arrived += lanes.ready(2)
        actor = Actor(policy, Sampling())
        seen = actor.decide(lanes, join_rows([lanes.rows[0], lanes.rows[1]])).seen
        assert np.shares_memory(seen.frames, lanes.buffer.observation.frames)
        assert seen.frames[:, 0, 0, 0, 0].tolist() == indices(lanes.scenarios).tolist()
        assert policy.instructions[0] == [scenario.instruction for scenario in lanes.scenarios]
        other = actor.decide(lanes, join_rows([lanes.rows[1], lanes.rows[0]])).seen
        assert not np.shares_memory(other.frames, seen.frames)


def test_actions_that_do_not_fit_the_simulator():
    with Crew(plan().crew) as crew, pytest.raises(ConfigError, match=r"acts in 7 dimensions.*'fake' takes 2"):
        check_dimensions(crew, 7)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_two_sessions_share_a_crew_and_neither_notices(lockstep, kind):
    """Rollouts of one, with other chunks and another horizon played in between, and with a fault after the change."""
    policy: Any = FakePolicy()
    with Crew(plan(lanes=2, workers=2, kind=kind).crew) as crew:
        lanes, stream = make_lanes(crew, plan())
        collector = make_collector(lanes, stream, policy)
        assert_same(lockstep[0], collector.collect(4, version=0))
        other = FakePolicy(chunk=3)
        between = Lanes(crew, Session(4), ScenarioStream(20, 7, 9), 3)
        make_collector(between, between.source, other).collect(2, version=5)  # type: ignore[arg-type]
        for pid in crew.pids:
            os.kill(pid, signal.SIGKILL)
        assert_same(lockstep[1], collector.collect(3, version=1))


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trajectories_of_the_tabletop_do_not_depend_on_lanes(tmp_path: Path, temperature: float):
    """Greedily and sampled; up to rounding, for batches of 1 to 4 slots."""
    policy = make_policy(tmp_path)
    policy.add_value_head(1)
    found: list[Rollout] = []
    for lanes, workers, kind in ((1, 1, "threads"), (3, 2, "threads"), (2, 2, "processes")):
        with Crew(CrewPlan(simulator_factory(SIMULATOR), 4, lanes=lanes, workers=workers, kind=kind)) as crew:
            stream = ScenarioStream(crew.count("train", "train"), 4, 3)
            played = Lanes(crew, Session(SIMULATOR.horizon, "truncated"), stream, policy.chunk)
            actor = Actor(policy, Sampling(temperature=temperature), encode=True)
            found.append(Collector(played, stream, actor, valued=True).collect(3, version=0))
    one = found[0]
    for other in found[1:]:
        assert torch.equal(one.choices, other.choices)
        assert torch.equal(one.valid, other.valid)
        assert np.array_equal(one.scenarios, other.scenarios)
        assert torch.allclose(one.log_probs, other.log_probs, atol=1e-4)
        assert torch.allclose(one.reward, other.reward, atol=1e-5)
        assert torch.allclose(one.values, other.values, atol=1e-4)
    assert len({tuple(tokens.tolist()) for tokens in one.choices[0]}) == 4
