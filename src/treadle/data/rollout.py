"""What a collector gathers: decisions and what came of them, time-major.

Shapes: T decisions per slot, B slots, C actions of a chunk, P and E of log-probs (`Policy.entries`), V values per
decision (1 or C), S privileged state.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.batch import TensorBatch
from treadle.data.step import EpisodeResult


@dataclass(slots=True)
class Rollout:
    """T decisions of each of B slots. Entries of actions that were not played are zero and not `valid`."""

    inputs: TensorBatch
    """[T, B, ...] what the policy read."""
    choices: Tensor
    """[T, B, ...] what it decided, as `Decision.choice` has it."""
    log_probs: Tensor
    """[T, B, P, E] float32, of the policy that acted."""
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
    success: Tensor
    """[T, B, C] bool, the goal held after this action."""
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
    next_inputs: TensorBatch | None = None
    """[T, B, ...] what the policy would read after each decision, the last observation where its episode ended; kept
    where the algorithm asks for it, zero where the slot idled."""
    selected: Tensor | None = None
    """[B] bool, slots whose group is worth a gradient, once an algorithm that compares groups has looked."""
