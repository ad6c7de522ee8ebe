"""RoboTwin 2.0: two arms on a table, fifty tasks; it lives in a Python environment of its own."""

from treadle.simulators.robotwin.simulator import RoboTwin

__all__ = ["RoboTwin"]
