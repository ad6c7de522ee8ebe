"""Treadle: reinforcement learning of vision-language-action policies in simulators."""

__version__ = "0.1.0"
