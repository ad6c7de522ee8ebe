"""Treadle: reinforcement learning of vision-language-action policies in simulators.

The public face is what is named here; what it needs is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.api import evaluate, load_policy, sft, train
    from treadle.policies.protocol import Sampling

__all__ = ["Sampling", "__version__", "evaluate", "load_policy", "sft", "train"]
__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("treadle.policies.sampling" if name == "Sampling" else "treadle.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
