"""How a simulator is made, as plain data: it can be sent to where the simulator is to live. Imports numpy alone."""

from dataclasses import dataclass
from typing import Any

from treadle.environments.interpreter import Interpreter
from treadle.plugins import import_callable
from treadle.simulators.protocol import Simulator


@dataclass(frozen=True, slots=True)
class SimulatorFactory:
    """Makes simulators of one kind."""

    target: str
    """`package.module:Class`"""
    options: dict[str, Any]
    """Keyword arguments of the class, beside `slots`."""
    interpreter: Interpreter | None = None
    """What its processes run in; None where it may also live in the process that asks."""

    def __call__(self, slots: int) -> Simulator:
        """A simulator of `slots` slots, in this process. Raises what its class raises."""
        return import_callable("simulator.name", self.target, "class")(slots=slots, **self.options)
