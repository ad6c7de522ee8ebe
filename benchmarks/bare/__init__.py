"""A simulator's own loop, to measure what is around it. Imports numpy alone, as the simulator's interpreter does.

Shapes: n control steps, A action dimensions.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.elsewhere import Elsewhere
from treadle.data.scenario import Scenario
from treadle.plugins import import_callable
from treadle.simulators.protocol import Simulator
from treadle.workers.crew import Crew

LIBRARIES = {"libero": "benchmarks.bare.libero:open_loop", "maniskill": "benchmarks.bare.maniskill:open_loop"}
"""What opens the loop of a library's own documentation at the start of a scenario, by the simulator around it."""
OWN = "benchmarks.bare:OwnLoop"


class BareLoop(Protocol):
    """One episode that nobody watches over: it may succeed, and goes on."""

    def play(self, actions: NDArray[np.float32]) -> None:
        """Play actions [n, A] one after another; each is followed by the frames of all cameras."""
        ...

    def close(self) -> None:
        """Release what the loop holds."""
        ...


class OwnLoop:
    """The loop of a simulator that is not around a library: its steps and observations, with nothing around them."""

    def __init__(self, simulator: Simulator, scenario: Scenario) -> None:
        """Plays in slot 0."""
        self._simulator = simulator
        self._slot, self._one = np.arange(1), np.ones(1, np.intp)
        self._seen = simulator.spec.observation(simulator.slots)
        simulator.reset(self._slot, [scenario])

    def play(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`."""
        for action in actions:
            self._simulator.step(self._slot, action[None, None], self._one)
            self._simulator.observe(self._slot, self._seen)

    def close(self) -> None:
        """See `BareLoop.close`."""


class LoopElsewhere:
    """A loop that runs beside a simulator, in the one worker of a crew."""

    def __init__(self, crew: Crew, opener: str, scenario: Scenario) -> None:
        self._crew = crew
        crew.call(f"{__name__}:start", opener, scenario)

    def play(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`; all of them are one call."""
        self._crew.call(f"{__name__}:play", actions)

    def close(self) -> None:
        """See `BareLoop.close`."""
        self._crew.call(f"{__name__}:close")


def bare_loop(simulator: Simulator, scenario: Scenario, opener: str | None = None) -> BareLoop:
    """The library's own loop where one is known, else the simulator's, beside the simulator."""
    opener = opener or LIBRARIES.get(simulator.spec.name, OWN)
    if isinstance(simulator, Elsewhere):
        return LoopElsewhere(simulator.crew, opener, scenario)
    return _open(simulator, opener, scenario)


_running: dict[str, BareLoop] = {}
"""The one loop of a worker."""


def start(simulator: Simulator, opener: str, scenario: Scenario) -> None:
    """In a worker: open a loop, in place of one that is there."""
    _running["loop"] = _open(simulator, opener, scenario)


def play(simulator: Simulator, actions: NDArray[np.float32]) -> None:  # noqa: ARG001
    """In a worker: see `BareLoop.play`. A worker that replaced another has no loop, and fails."""
    _running["loop"].play(actions)


def close(simulator: Simulator) -> None:  # noqa: ARG001
    """In a worker: see `BareLoop.close`."""
    _running.pop("loop").close()


def _open(simulator: Simulator, opener: str, scenario: Scenario) -> Any:
    return import_callable("bare loop", opener, "function")(simulator, scenario)
