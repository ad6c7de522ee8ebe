# torch leaves unique untyped.
# pyright: reportUnknownMemberType=false
"""Advantages of whole episodes, compared with others of the same scenario; and which groups say anything.

Shapes: E episodes. Group ids are any integers; episodes of equal id form a group, of any size.
"""

from typing import cast

import torch
from torch import Tensor


def grpo_advantages(scores: Tensor, groups: Tensor, eps: float = 1e-6) -> Tensor:
    """`(s - mean) / (std + eps)` in each group (Shao et al. 2024, "DeepSeekMath", section 4.1.2), with the sample's
    standard deviation, n - 1 below. Groups of one, or of equal scores, get 0. All are [E].
    """
    count, centered, differs = _centered(scores, groups)
    sums = torch.zeros_like(scores).index_add(0, _index(groups), centered.square())[_index(groups)]
    std = (sums / (count - 1).clamp(min=1)).sqrt()
    return torch.where(differs, centered / (std + eps), 0)


def dr_grpo_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """`s - mean` in each group, without the division that favours groups of little spread (Liu et al. 2025,
    "Understanding R1-Zero-Like Training"). All are [E].
    """
    return _centered(scores, groups)[1]


def rloo_advantages(scores: Tensor, groups: Tensor) -> Tensor:
    """`s_i - mean of the others` in each group, `n / (n - 1) * (s_i - mean)` (Kool et al. 2019; Ahmadian et al. 2024,
    "Back to Basics"). A group of one has no others, and gets 0. All are [E].
    """
    count, centered, _ = _centered(scores, groups)
    return centered * count / (count - 1).clamp(min=1)


def alike_advantages(returns: Tensor, episodes: Tensor, moments: Tensor) -> Tensor:
    """Returns less what the other episodes of one group got from moments alike: `G_i - sum_j w_ij G_j / sum_j w_ij`.

    w_ij is a Gaussian of the distance of two moments, and 0 within an episode, so that no return is its own baseline:
    kernel regression (Nadaraya 1964; Watson 1964), each feature as wide as Scott's rule has it,
    `std * n**(-1/(F + 4))`. A moment that has none alike gets 0. Memory grows with n squared.

    Args:
        returns: [n], from each moment on.
        episodes: [n] int, which episode it is of.
        moments: [n, F], what tells moments apart; of the past alone, or the baseline would not be one.
    """
    width = moments.std(0, correction=0).clamp(min=1e-9) * len(moments) ** (-1 / (moments.shape[1] + 4))
    scaled = moments / width
    distances = torch.cdist(scaled, scaled, compute_mode="donot_use_mm_for_euclid_dist")
    weights = torch.where(episodes[:, None] != episodes, torch.exp(-distances.square() / 2), 0)
    total = weights.sum(1)
    alike = total > 1e-3
    return torch.where(alike, returns - weights @ returns / torch.where(alike, total, 1), 0)


def varied_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """Which episodes are of groups whose scores are not all equal; the others' advantages are 0. All are [E]."""
    return _centered(scores, groups)[2]


def group_means(x: Tensor, groups: Tensor) -> Tensor:
    """The mean of each episode's group. All are [E]."""
    index = _index(groups)
    count = torch.zeros_like(x).index_add(0, index, torch.ones_like(x))
    return (torch.zeros_like(x).index_add(0, index, x) / count)[index]


def _index(groups: Tensor) -> Tensor:
    return cast("tuple[Tensor, Tensor]", torch.unique(groups, return_inverse=True))[1]


def _centered(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each episode: its group's size, its score less the group's mean, and whether the group's scores differ.

    Equal scores are found by comparing, not by a small spread, and give exactly 0: rounding is no signal.
    """
    if scores.shape != groups.shape or scores.dim() != 1:
        raise ValueError(f"scores and groups must be [E], found shapes {tuple(scores.shape)} and {tuple(groups.shape)}")
    index = _index(groups)
    count = torch.zeros_like(scores).index_add(0, index, torch.ones_like(scores))[index]
    empty = torch.zeros_like(scores)
    highest = empty.scatter_reduce(0, index, scores, "amax", include_self=False)[index]
    lowest = empty.scatter_reduce(0, index, scores, "amin", include_self=False)[index]
    differs = highest > lowest
    return count, torch.where(differs, scores - group_means(scores, groups), 0), differs
