"""The embedded simulator: a tabletop in MuJoCo, without OpenGL, downloads or a graphics card."""

from treadle.simulators.tabletop.expert import Expert
from treadle.simulators.tabletop.simulator import Tabletop

__all__ = ["Expert", "Tabletop"]
