"""What a collector gathers: decisions and what came of them, time-major.

Shapes: T decisions per slot, B slots, C actions of a chunk, K action tokens, V values per decision (1 or C),
S privileged state, F observations that ended an episode without ending the task.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.step import EpisodeResult
from treadle.policies.protocol import Inputs


@dataclass(slots=True)
class Rollout:
    """T decisions of each of B slots. Entries of actions that were not played are zero and not `valid`."""

    inputs: list[Inputs]
    """T inputs of B rows each."""
    tokens: Tensor
    """[T, B, K] int64."""
    log_probs: Tensor
    """[T, B, K] float32, of the policy that acted."""
    values: Tensor
    """[T, B, V] float32."""
    state: Tensor
    """[T, B, C, S] float32, the privileged state before each action; zero where that action was not played."""
    reward: Tensor
    """[T, B, C] float32."""
    terminated: Tensor
    """[T, B, C] bool."""
    truncated: Tensor
    """[T, B, C] bool."""
    valid: Tensor
    """[T, B, C] bool."""
    final_values: Tensor
    """[T, B] float32, the value of the last observation where an episode ended and is to be bootstrapped, else 0."""
    next_values: Tensor
    """[B] float32, the value of the observation after the last decision."""
    versions: Tensor
    """[T, B] int64, how many updates the acting policy had had."""
    scenarios: NDArray[np.object_]
    """[T, B] the `Scenario` that each slot was playing, None where it idled: nothing was decided then."""
    episodes: list[EpisodeResult]
    """The episodes that ended, in order of time and slot."""
    seconds: dict[str, float]
    """Wall time of each role: simulate, generate."""
