"""What the tests of the losses share."""

from dataclasses import replace
from math import log

import torch

from treadle.algorithms.levels import Level
from treadle.algorithms.losses import PolicyBatch, PolicyObjective

LEVELS: list[Level] = ["token", "action", "chunk", "sequence"]
# Two decisions of two actions with two dimensions.
TOKENS = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
PLAYED = torch.tensor([[True, False], [True, True]])
SECOND_DIMENSION = torch.tensor([False, True])


def objective(level: Level = "token", entries: tuple[int, int] = (1, 1), **changes: object) -> PolicyObjective:
    plain = PolicyObjective(level=level, entries=entries, clip_low=0.2, clip_high=0.3)
    return replace(plain, **changes)  # type: ignore[arg-type]


def one_token(ratio: float, advantage: float) -> PolicyBatch:
    """One decision of one action with one dimension."""
    return PolicyBatch(
        log_probs=torch.tensor([[[log(ratio) - 1]]], requires_grad=True),
        old_log_probs=torch.tensor([[[-1.0]]]),
        entropy=torch.tensor([[[0.7]]]),
        advantages=torch.tensor([advantage]),
        valid=torch.tensor([[True]]),
    )
