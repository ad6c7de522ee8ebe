"""Treadle: reinforcement learning of vision-language-action policies in simulators.

The public face is what is named here; `load_policy` and `Sampling` import torch when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.policies.load import load_policy
    from treadle.policies.protocol import Sampling

__all__ = ["Sampling", "__version__", "load_policy"]
__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    if name in ("load_policy", "Sampling"):
        return getattr(import_module(f"treadle.policies.{'load' if name == 'load_policy' else 'sampling'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
