"""Any Gymnasium environment with an image and an instruction."""

from treadle.simulators.gymnasium.simulator import GymnasiumSimulator

__all__ = ["GymnasiumSimulator"]
