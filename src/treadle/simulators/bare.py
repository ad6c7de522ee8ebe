"""A simulator's own loop, to measure what is around it. Imports numpy alone, as workers do.

Shapes: n control steps, A action dimensions.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.simulators.protocol import Simulator


class BareLoop(Protocol):
    """One episode that nobody watches over: it may succeed, and goes on."""

    def play(self, actions: NDArray[np.float32]) -> None:
        """Play actions [n, A] one after another; each is followed by the frames of all cameras."""
        ...

    def close(self) -> None:
        """Release what the loop holds."""
        ...


@runtime_checkable
class HasBareLoop(Protocol):
    """A simulator around a library that can be called without it."""

    def bare(self, scenario: Scenario) -> BareLoop:
        """The loop of the library's own documentation, at the start of a scenario."""
        ...


class OwnLoop:
    """The loop of a simulator that is not around a library: its steps and observations, with nothing around them."""

    def __init__(self, simulator: Simulator, scenario: Scenario) -> None:
        """Plays in slot 0."""
        spec, self._simulator = simulator.spec, simulator
        self._slot, self._one = np.arange(1), np.ones(1, np.intp)
        self._seen = Observation.empty(
            simulator.slots, len(spec.cameras), spec.height, spec.width, spec.proprioception_dim, spec.state_dim
        )
        simulator.reset(self._slot, [scenario])

    def play(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`."""
        for action in actions:
            self._simulator.step(self._slot, action[None, None], self._one)
            self._simulator.observe(self._slot, self._seen)

    def close(self) -> None:
        """See `BareLoop.close`."""


def bare_loop(simulator: Simulator, scenario: Scenario) -> BareLoop:
    """The library's own loop where the simulator knows one, else the simulator's."""
    return simulator.bare(scenario) if isinstance(simulator, HasBareLoop) else OwnLoop(simulator, scenario)
