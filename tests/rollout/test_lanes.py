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

from fake_lanes import assert_same, collect, plan
from fakes import FakePolicy, indices
from miniature import SIMULATOR, make_policy
from treadle.data.rollout import Rollout
from treadle.errors import ConfigError, SimulatorError
from treadle.policies.critic import ValueHeadCritic
from treadle.policies.protocol import Sampling
from treadle.rollout.collector import Collector, _join
from treadle.rollout.division import divide
from treadle.rollout.lanes import Lanes, LanesPlan, check_dimensions
from treadle.simulators.build import simulator_factory
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.process import WorkerError


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
    stream = {"group_size": group_size, "partial_reset": False}
    one = collect(plan(6, stream=stream, keep_final="none"), (3, 3))
    other = collect(plan(6, stream=stream, keep_final="none", lanes=lanes, delays=delays), (3, 3))
    for left, right in zip(one, other, strict=True):
        assert len(right.episodes) == 6, "each slot's episode once"
        assert_same(left, right)


@pytest.mark.parametrize(("lanes", "workers"), [(1, 1), (2, 1), (3, 2), (2, 5)])
def test_processes_play_the_same(lockstep, lanes, workers):
    for one, other in zip(lockstep, collect(plan(lanes=lanes, workers=workers, kind="processes")), strict=True):
        assert_same(one, other)


def test_a_state_goes_from_one_number_of_lanes_to_another(lockstep):
    policy: Any = FakePolicy()

    def collector(lanes: Lanes) -> Collector:
        return Collector(lanes, policy, Sampling(), ValueHeadCritic(policy), encode=False)

    with Lanes(plan(lanes=3), policy.chunk) as three, Lanes(plan(lanes=2, workers=3), policy.chunk) as two:
        one, other = collector(three), collector(two)
        one.collect(4, version=0)
        other.load_state_dict(one.state_dict())
        assert_same(lockstep[1], one.collect(3, version=1))
        assert_same(lockstep[1], other.collect(3, version=1))


@given(slots=st.integers(1, 40), lanes=st.integers(1, 40), workers=st.integers(1, 40))
def test_slots_are_divided_without_rest(slots, lanes, workers):
    lanes, workers = min(slots, lanes), min(slots, workers)
    parts = divide(slots, lanes, workers)
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
    with Lanes(plan(3, lanes=3, workers=3, trouble={first: "hang"}, timeout=3.0), policy.chunk) as lanes:
        collector = Collector(lanes, policy, Sampling(), ValueHeadCritic(policy), encode=False)
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
    assert not psutil.Process().children(recursive=True)


def test_a_killed_worker_ends_the_run_with_its_name_and_scenarios():
    with pytest.raises(SimulatorError) as caught:
        collect(plan(4, lanes=4, workers=2, kind="processes", trouble=dict.fromkeys(range(20), "die")))
    said = str(caught.value)
    assert "its process was ended by signal SIGKILL" in said
    assert "playing slot" in said
    assert "it serves lanes" in said
    assert "the same command goes on from the last checkpoint" in said
    assert not psutil.Process().children(recursive=True)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_simulator_that_cannot_be_built(kind):
    factory = SimulatorFactory("fake_simulator:DelayedSimulator", {"nonsense": 1})
    with pytest.raises(WorkerError, match=r"worker 0 of 1: building the simulator: TypeError.*nonsense"):
        Lanes(LanesPlan(factory, 2, 3, {"seed": 0}, kind=kind), 2)
    missing = SimulatorFactory("no_such_module:Class", {})
    with pytest.raises(ConfigError, match=r"cannot import 'no_such_module:Class'"):
        Lanes(LanesPlan(missing, 2, 3, {"seed": 0}, kind=kind), 2)


def open_files() -> int:
    gc.collect()  # mapped memory goes with its last array
    return psutil.Process().num_fds()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /dev/shm")
def test_nothing_is_left_behind():
    shared = set(Path("/dev/shm").iterdir())
    before, threads = open_files(), psutil.Process().num_threads()
    for kind in ("threads", "processes"):
        lanes = Lanes(plan(lanes=2, workers=2, kind=kind), 2)
        lanes.start()
        lanes.close()
        lanes.close()
        del lanes  # and with it the board, which maps the memory
    assert open_files() == before
    assert psutil.Process().num_threads() == threads
    assert set(Path("/dev/shm").iterdir()) == shared, "the memory has no name"
    assert not psutil.Process().children(recursive=True)


MAIN = """
import signal
from treadle.rollout.lanes import Lanes, LanesPlan
from treadle.simulators.factory import SimulatorFactory

# A shell may have started the tests in the background, where Ctrl-C is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
factory = SimulatorFactory("fake_simulator:DelayedSimulator", {"trouble": dict.fromkeys(range(20), "hang")})
with Lanes(LanesPlan(factory, 2, 5, {"seed": 0}, lanes=2, workers=2, kind="processes"), 2) as lanes:
    lanes.start()
    for _ in range(2):
        lanes.play(lanes.ready(1)[0].lane)
    print(*[handle.pid for handle in lanes._handles], flush=True)
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
        "import json, sys, treadle.rollout.worker_process, treadle.simulators.remote_worker; "
        "files = {name: getattr(module, '__file__', None) for name, module in sys.modules.items()}; "
        "found = {name.partition('.')[0] for name, file in files.items() if file}; "
        "print(json.dumps(sorted(found - set(sys.stdlib_module_names) - {'__main__'})))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=env)
    assert json.loads(done.stdout) == ["numpy", "treadle"]


def test_frames_stay_where_the_simulator_wrote_them():
    policy: Any = FakePolicy()
    with Lanes(plan(lanes=2, kind="processes"), policy.chunk) as lanes:
        lanes.start()
        while lanes._asked:
            lanes._receive(wait=True)
        lanes.ready(2)
        collector = Collector(lanes, policy, Sampling(), ValueHeadCritic(policy), encode=False)
        seen = collector._seen(_join([lanes.rows[0], lanes.rows[1]]))
        assert np.shares_memory(seen.frames, lanes.board.observation.frames)
        assert seen.frames[:, 0, 0, 0, 0].tolist() == indices(lanes.scenarios).tolist()
        assert not np.shares_memory(collector._seen(_join([lanes.rows[1], lanes.rows[0]])).frames, seen.frames)


def test_actions_that_do_not_fit_the_simulator():
    with Lanes(plan(), 2) as lanes, pytest.raises(ConfigError, match=r"acts in 7 dimensions.*'fake' takes 2"):
        check_dimensions(lanes.spec, 7)


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_trajectories_of_the_tabletop_do_not_depend_on_lanes(tmp_path: Path, temperature: float):
    """Greedily and sampled; up to rounding, for batches of 1 to 4 slots."""
    policy = make_policy(tmp_path)
    policy.add_value_head(1)
    found: list[Rollout] = []
    for lanes, workers, kind in ((1, 1, "threads"), (3, 2, "threads"), (2, 2, "processes")):
        factory = simulator_factory(SIMULATOR)
        chosen = LanesPlan(factory, 4, SIMULATOR.horizon, {"seed": 3}, lanes=lanes, workers=workers, kind=kind)
        with Lanes(chosen, policy.chunk) as opened:
            sampling = Sampling(temperature=temperature)
            collector = Collector(opened, policy, sampling, ValueHeadCritic(policy), encode=True)
            found.append(collector.collect(3, version=0))
    one = found[0]
    for other in found[1:]:
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.valid, other.valid)
        assert np.array_equal(one.scenarios, other.scenarios)
        assert torch.allclose(one.log_probs, other.log_probs, atol=1e-4)
        assert torch.allclose(one.reward, other.reward, atol=1e-5)
        assert torch.allclose(one.values, other.values, atol=1e-4)
    assert len({tuple(tokens.tolist()) for tokens in one.tokens[0]}) == 4
