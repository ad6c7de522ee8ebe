"""Compiled parts of transformer blocks, for acting: one compilation serves all blocks of a kind.

What lies between two matrix products becomes one kernel. Shapes are dynamic, so that batches and prompts of any size
share it, but for sizes of 1.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    """`part` of a block, compiled when it is first called."""
    return torch.compile(part, dynamic=True)
