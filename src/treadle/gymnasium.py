"""Importing this module makes `gymnasium.make("treadle/Tabletop-v0")` and `gymnasium.make_vec` work."""

from treadle.simulators.tabletop.gymnasium_env import register

register()
