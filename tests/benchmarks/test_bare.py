"""Bare loops, here and in workers."""

import sys
from contextlib import closing

import numpy as np
import pytest

from benchmarks.bare import bare_loop
from benchmarks.elsewhere import open_in_a_process
from fake_simulator import FakeSimulator, scenario
from treadle.environments.interpreter import Interpreter
from treadle.simulators.factory import SimulatorFactory


def steps_of(simulator) -> int:
    """Those of slot 0, as it shows them."""
    seen = simulator.spec.observation(simulator.slots)
    simulator.observe(np.arange(1), seen)
    return int(seen.state[0, 1])


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("opener", "played", "closed"), [(None, 3, 3), ("fake_simulator:LibraryLoop", 300, 0)])
def test_the_loop_is_the_librarys_where_there_is_one(remote, opener, played, closed):
    if remote:
        factory = SimulatorFactory("fake_simulator:FakeSimulator", {}, Interpreter(sys.executable))
        simulator = open_in_a_process(factory, 2, 60.0)
    else:
        simulator = FakeSimulator(2)
    with closing(simulator):
        loop = bare_loop(simulator, scenario(5), opener)
        loop.play(np.zeros((3, 2), np.float32))
        assert steps_of(simulator) == played
        loop.close()
        assert steps_of(simulator) == closed
