"""A host of a simulator that goes by scripts, and how its masks read."""

import numpy as np

from fake_simulator import FakeSimulator, Script, one_after_another, scenario
from treadle.simulators.host import Host

SCRIPTS = {
    0: Script(ends=3, succeeds=(3,)),
    1: Script(succeeds=(2,)),
    2: Script(ends=10),
    3: Script(ends=4, succeeds=(1, 4)),
}
"""With horizon 10 and chunks of 4: ends in a chunk; is truncated; terminates at the horizon; ends with its chunk."""


def make_host(**options) -> tuple[Host, FakeSimulator]:
    simulator = FakeSimulator(3, SCRIPTS)
    return Host(simulator, one_after_another(scenario(i) for i in range(4)), 10, **options), simulator


def zeros(slots: int = 3, chunk: int = 4, action_dim: int = 2) -> np.ndarray:
    return np.zeros((slots, chunk, action_dim), np.float32)


def bits(x: np.ndarray) -> list[str]:
    return ["".join("x" if bit else "." for bit in row) for row in x]
