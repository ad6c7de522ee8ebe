"""Treadle: reinforcement learning of vision-language-action policies in simulators.

The public face is what is named here; `load_policy` and `Sampling` import torch when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.policies.load import load_policy
    from treadle.policies.protocol import Sampling

__all__ = ["Sampling", "__version__", "load_policy"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load_policy":
        from treadle.policies.load import load_policy

        return load_policy
    if name == "Sampling":
        from treadle.policies.protocol import Sampling

        return Sampling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
