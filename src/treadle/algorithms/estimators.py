# torch leaves tolist untyped.
# pyright: reportUnknownMemberType=false
"""Estimators of advantages under one interface, so that a recipe can name one, built in or a user's own.

Shapes: N entries in time, B slots. At chunk level N is T decisions; at action level N is T * C actions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from treadle.algorithms.advantages import discounted_returns, estimate_gae
from treadle.algorithms.groups import alike_advantages, dr_grpo_advantages, grpo_advantages, rloo_advantages


@dataclass(frozen=True, slots=True)
class Timeline:
    """What an estimator reads of one rollout."""

    rewards: Tensor
    """[N, B]"""
    values: Tensor
    """[N, B] of the critic, 0 without one."""
    ended: Tensor
    """[N, B] bool, the episode ended with this entry."""
    bootstrap_values: Tensor
    """[N, B], what follows where an episode ended; 0 after a termination."""
    last_values: Tensor
    """[B], the value of the observation after the rollout."""
    valid: Tensor
    """[N, B] bool, what was played."""
    scenarios: Tensor
    """[N, B] int64, which scenario the slot was playing; episodes of one scenario form a group."""
    gamma: float
    """Discount per entry."""
    gae_lambda: float

    def scores(self) -> Tensor:
        """[B]: undiscounted return of each slot's episode, in rollouts of fixed length."""
        return torch.where(self.valid, self.rewards, 0).sum(0)

    def returns(self) -> Tensor:
        """[N, B]: discounted return from each entry on to its episode's end, 0 where invalid."""
        return discounted_returns(torch.where(self.valid, self.rewards, 0), self.ended, self.valid, gamma=self.gamma)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an estimator makes of a timeline."""

    advantages: Tensor
    """[N, B], 0 where invalid."""
    returns: Tensor | None = None
    """[N, B], what values should have been; None without a critic."""


Estimator = Callable[[Timeline], Estimate]
"""The signature of an estimator; a recipe names a user's own as `package.module:function`."""


def gae(timeline: Timeline) -> Estimate:
    """`advantages.estimate_gae`."""
    return Estimate(
        *estimate_gae(
            timeline.rewards,
            timeline.values,
            timeline.ended,
            timeline.bootstrap_values,
            timeline.last_values,
            timeline.valid,
            gamma=timeline.gamma,
            gae_lambda=timeline.gae_lambda,
        )
    )


def grpo(timeline: Timeline) -> Estimate:
    """`groups.grpo_advantages` of the episodes, given to every valid entry."""
    return _of_episodes(timeline, grpo_advantages)


def dr_grpo(timeline: Timeline) -> Estimate:
    """`groups.dr_grpo_advantages` of the episodes, given to every valid entry."""
    return _of_episodes(timeline, dr_grpo_advantages)


def rloo(timeline: Timeline) -> Estimate:
    """`groups.rloo_advantages` of the episodes, given to every valid entry."""
    return _of_episodes(timeline, rloo_advantages)


def rloo_to_go(timeline: Timeline) -> Estimate:
    """What an episode earns from each entry on, less the mean of what the others of its group that still play earn
    from theirs on: `groups.rloo_advantages` of discounted returns, entry by entry.

    What was earned before an action is no noise in its advantage, and `gamma` bounds what comes after. The group is a
    baseline that depends on time (Peters and Schaal 2008, "Reinforcement learning of motor skills with policy
    gradients"); TGRPO compares rewards step by step (Chen et al. 2025, arXiv 2506.08440). An entry that no other
    episode of the group has reached gets 0. For rollouts of fixed length, where the episodes of a group begin together.
    """
    returns, valid = timeline.returns(), timeline.valid
    entries = torch.arange(len(returns), device=returns.device)[:, None]
    moments = timeline.scenarios * len(returns) + entries
    advantages = torch.zeros_like(returns)
    advantages[valid] = rloo_advantages(returns[valid], moments[valid])
    return Estimate(advantages)


def rloo_alike(timeline: Timeline) -> Estimate:
    """What an episode earns from each entry on, less what the others of its group earn from moments alike on:
    `groups.alike_advantages` of discounted returns, with time and what was earned before as features.

    As `rloo_to_go`, but an episode that is behind is compared with others when they were there, too. GiGPO groups equal
    states of a group's episodes (Feng et al. 2025, arXiv 2505.10978); here they are alike, and told apart by rewards
    alone, which needs rewards inside the episode. For rollouts of fixed length.
    """
    rewards, valid = torch.where(timeline.valid, timeline.rewards, 0), timeline.valid
    returns, earned = timeline.returns(), rewards.cumsum(0) - rewards
    entries = torch.arange(len(returns), dtype=returns.dtype, device=returns.device)[:, None].expand_as(returns)
    slots = torch.arange(returns.shape[1], device=returns.device).expand_as(timeline.scenarios)
    advantages = torch.zeros_like(returns)
    for scenario in set(cast("list[int]", timeline.scenarios[valid].tolist())):
        group = valid & (timeline.scenarios == scenario)
        moments = torch.stack([entries[group], earned[group]], 1)
        advantages[group] = alike_advantages(returns[group], slots[group], moments)
    return Estimate(advantages)


def reinforce_pp(timeline: Timeline) -> Estimate:
    """Discounted returns; with normalisation over the batch, REINFORCE++ (Hu et al. 2025)."""
    return Estimate(timeline.returns())


ESTIMATORS: dict[str, Estimator] = {
    "gae": gae,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "rloo_to_go": rloo_to_go,
    "rloo_alike": rloo_alike,
    "reinforce_pp": reinforce_pp,
    # Its baseline is the group's mean, and the division by the batch's spread follows in normalisation.
    "reinforce_pp_baseline": dr_grpo,
}


def _of_episodes(timeline: Timeline, estimate: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
    advantages = estimate(timeline.scores(), timeline.scenarios[0])
    return Estimate(torch.where(timeline.valid, advantages, 0))
