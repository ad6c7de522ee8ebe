"""Which groups of episodes are worth a gradient.

Shapes: B slots.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.algorithms.groups import varied_groups
from treadle.config.on_policy import GROUP_ESTIMATORS, OnPolicyConfig
from treadle.data.rollout import Rollout
from treadle.data.scenario import Scenario


def select_slots(rollout: Rollout, algorithm: OnPolicyConfig) -> Tensor:
    """[B] bool: slots whose group gives a gradient. The group's success rate decides; if the estimator compares the
    episodes of a group, their scores must also differ. It is decided once, and kept with the rollout.
    """
    if rollout.selected is None:
        rollout.selected = _select(rollout, algorithm)
    return rollout.selected


def count_groups(rollout: Rollout, algorithm: OnPolicyConfig) -> tuple[int, int]:
    """How many groups of a rollout give a gradient, and how many there are."""
    selected = select_slots(rollout, algorithm).numpy()
    scenarios = rollout.scenarios[0]
    return len(set(scenarios[selected])), len(set(scenarios))


def number_scenarios(scenarios: NDArray[np.object_]) -> Tensor:
    """int64 of the same shape: equal numbers for equal scenarios, -1 where there is none."""
    numbers: dict[Scenario | None, int] = {None: -1}
    each: list[Scenario | None] = scenarios.ravel().tolist()
    flat = [numbers.setdefault(scenario, len(numbers) - 1) for scenario in each]
    return torch.tensor(flat).reshape(scenarios.shape)


def _select(rollout: Rollout, algorithm: OnPolicyConfig) -> Tensor:
    if algorithm.group_size == 1:
        return torch.ones(rollout.reward.shape[1], dtype=torch.bool)
    outcomes: dict[Scenario, list[bool]] = {}
    for episode in rollout.episodes:
        outcomes.setdefault(episode.scenario, []).append(episode.success_once)
    rates = {scenario: sum(found) / len(found) for scenario, found in outcomes.items()}
    limits = algorithm.filter
    selected = torch.tensor([limits.low <= rates[scenario] <= limits.high for scenario in rollout.scenarios[0]])
    if algorithm.estimator in GROUP_ESTIMATORS:
        scores = torch.where(rollout.valid, rollout.reward, 0).sum((0, 2))
        selected &= varied_groups(scores, number_scenarios(rollout.scenarios[0]))
    return selected
