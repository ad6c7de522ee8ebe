"""ManiSkill 3, in an environment of its own: built-in tasks, and put-on-plate with its out-of-distribution settings."""

from treadle.simulators.maniskill.simulator import ManiSkill

__all__ = ["ManiSkill"]
