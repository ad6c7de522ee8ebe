"""An advantage estimator: `algorithm.estimator = "treadle_reach.estimator:step_baseline"`."""

import torch

from treadle.algorithms.estimators import Estimate, Timeline


def step_baseline(timeline: Timeline) -> Estimate:
    """What each entry earns from there on, less the mean of what all slots earn from the same moment on.

    A baseline that depends on time alone, and needs no critic. For rollouts of whole episodes
    (`algorithm.partial_reset = false`), where all slots begin together.
    """
    returns, valid = timeline.returns(), timeline.valid
    mean = returns.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    return Estimate(torch.where(valid, returns - mean, 0))
