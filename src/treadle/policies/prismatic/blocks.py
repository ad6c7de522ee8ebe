"""How the network runs: how many samples a CPU takes through it at a time, and parts that run compiled.

Memory beyond 32 MiB goes back to the system when a tensor is freed, and comes as pages to be cleared when the next one
is made; the activations of a block stay below that, and nearer the cache. Results are the same, up to rounding.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BLOCK_BYTES = 2**23
"""Of the largest activation of a block."""


def in_blocks(work: Callable[[slice], Tensor], count: int, largest: int, like: Tensor) -> Tensor:
    """`work` of all of `count` samples, block by block: results [n, ...] for n samples, joined.

    `largest`: numbers in a sample's largest activation; `like` is a weight of the layers at work. On other devices,
    which need many samples at once, where gradients are kept, and where the weight is a shard, so that every pass is
    one of all ranks, all samples are one block.
    """
    most = max(1, BLOCK_BYTES // (largest * like.element_size()))
    if count <= most or like.device.type != "cpu" or torch.is_grad_enabled() or isinstance(like, DTensor):
        return work(slice(None))
    number = -(-count // most)
    # As equal as can be.
    ends = [count * index // number for index in range(number + 1)]
    return torch.cat([work(slice(start, end)) for start, end in pairwise(ends)])


@cache
def compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    """A part of a transformer block for acting, compiled when it is first called, once for all blocks of a kind.

    What lies between two matrix products becomes one kernel. Shapes are dynamic, so that batches and prompts of any
    size share it, but for sizes of 1.
    """
    return torch.compile(part, dynamic=True)
