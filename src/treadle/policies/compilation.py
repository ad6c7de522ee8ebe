"""Compiled transformer blocks, for acting: one compilation serves all blocks of a kind.

What lies between two matrix products becomes one kernel. Shapes are dynamic, so that batches and prompts of any size
share it, but for sizes of 1.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def compiled(walk: Callable[..., Tensor]) -> Callable[..., Any]:
    """`walk` of a block, compiled when it is first called."""
    return torch.compile(walk, dynamic=True)
