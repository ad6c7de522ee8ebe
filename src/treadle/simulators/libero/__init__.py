"""LIBERO: 130 language-conditioned tasks of a Panda arm, in robosuite. Importing this imports numpy alone."""

from treadle.simulators.libero.simulator import Libero

__all__ = ["Libero"]
