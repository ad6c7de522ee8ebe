"""Bare loops, here and in workers."""

import sys

import numpy as np
import pytest

from fake_simulator import FakeSimulator, LibrarySimulator, scenario
from treadle.data.observation import Observation
from treadle.simulators.bare import bare_loop
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.process import Interpreter
from treadle.simulators.remote import open_remote


def steps_of(simulator) -> int:
    """Those of slot 0, as it shows them."""
    seen = Observation.empty(simulator.slots, 1, 4, 4, 2, 2)
    simulator.observe(np.arange(1), seen)
    return int(seen.state[0, 1])


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("kind", "expected"), [(FakeSimulator, 3), (LibrarySimulator, 300)])
def test_the_loop_is_the_librarys_where_there_is_one(remote, kind, expected):
    if remote:
        target = f"fake_simulator:{kind.__name__}"
        simulator = open_remote(SimulatorFactory(target, {}, Interpreter(sys.executable)), 2, 2)
    else:
        simulator = kind(2)
    try:
        loop = bare_loop(simulator, scenario(5))
        loop.play(np.zeros((3, 2), np.float32))
        assert steps_of(simulator) == expected
        loop.close()
        assert steps_of(simulator) == (0 if kind is LibrarySimulator else 3)
    finally:
        simulator.close()
