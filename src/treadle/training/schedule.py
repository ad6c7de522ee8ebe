"""What changes from one iteration to the next: the learning rate, and the order of decisions."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def learning_rate_share(
    position: int, steps: int, warmup: int, final_share: float, shape: Literal["linear", "cosine"]
) -> float:
    """Share of the top learning rate at iteration `position` of `steps`: linear growth over `warmup` iterations, then
    decay along a line or a half cosine to `final_share` at the last one; 0 before iteration 0.
    """
    if position < 0:
        return 0.0
    if position < warmup:
        return (position + 1) / (warmup + 1)
    done = (position - warmup) / max(1, steps - 1 - warmup)
    if shape == "cosine":
        done = (1 - math.cos(math.pi * done)) / 2
    return 1 - (1 - final_share) * done


def draw_minibatches(count: int, size: int, seed: int, iteration: int, epoch: int) -> Iterator[Tensor]:
    """Rows of each minibatch, from a new permutation for every iteration and epoch, remainder included.

    Epochs of a critic with its own network count -1, -2, ...
    """
    # Not `hash`, for which -1 and -2 are the same.
    entropy = [seed, iteration, abs(epoch), int(epoch < 0)]
    state = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(state)
    yield from torch.randperm(count, generator=generator).split(size)
