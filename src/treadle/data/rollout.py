"""What a collector gathers: decisions and what came of them, time-major.

Shapes: T decisions per slot, B slots, C actions of a chunk, P and E of log-probs (`Policy.entries`), V values per
decision (1 or C), S privileged state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.batch import TensorBatch
from treadle.data.step import EpisodeResult

_STEPS = (
    "choices",
    "log_probs",
    "values",
    "state",
    "reward",
    "terminated",
    "truncated",
    "success",
    "valid",
    "final_values",
    "final_states",
    "versions",
)
"""The tensors [T, B, ..] of a rollout."""
_HEAD = ("values", "final_values")
"""Those of them that are there only where the policy's head values what it sees."""


@dataclass(slots=True)
class Rollout:
    """T decisions of each of B slots. Entries of actions that were not played are zero and not `valid`."""

    inputs: TensorBatch
    """[T, B, ...] what the policy read."""
    choices: Tensor
    """[T, B, ...] what it decided, as `Decision.choice` has it."""
    log_probs: Tensor
    """[T, B, P, E] float32, of the policy that acted."""
    values: Tensor | None
    """[T, B, V] float32, of the policy's head. None, with `final_values` and `next_values`, where no head values what
    is seen: a network of its own does, when the algorithm asks `Training.critic`, or nothing does.
    """
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
    final_values: Tensor | None
    """[T, B] float32, the head's value of the last observation where an episode ended and is to be bootstrapped, else
    0.
    """
    next_values: Tensor | None
    """[B] float32, the head's value of the observation after the last decision."""
    final_states: Tensor
    """[T, B, S] float32, the privileged state of the last observation where an episode ended and is to be bootstrapped,
    else 0.
    """
    next_states: Tensor
    """[B, S] float32, the privileged state of the observation after the last decision."""
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

    def take_slots(self, first: int, stop: int) -> "Rollout":
        """What a player of slots `first` to `stop` alone would have collected, on the CPU."""
        rows = slice(first, stop)

        def of_batch(batch: TensorBatch | None) -> TensorBatch | None:
            return batch and batch.of({name: x[:, rows].cpu() for name, x in batch.tensors().items()})

        inputs = of_batch(self.inputs)
        assert inputs is not None
        return replace(
            self,
            inputs=inputs,
            next_inputs=of_batch(self.next_inputs),
            **{name: tensor[:, rows] for name, tensor in _steps(self).items()},
            next_values=None if self.next_values is None else self.next_values[rows],
            next_states=self.next_states[rows],
            scenarios=self.scenarios[:, rows],
            episodes=[replace(e, slot=e.slot - first) for e in self.episodes if first <= e.slot < stop],
            selected=None,
        )

    @staticmethod
    def join(parts: "Sequence[Rollout]") -> "Rollout":
        """The rollout of neighbouring slots, in order; one that ended earlier is filled up with decisions that were not
        played. Seconds are the longest.
        """
        if len(parts) == 1:
            return parts[0]
        decisions = max(len(part.valid) for part in parts)

        def fill(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros(decisions - len(x), *x.shape[1:])]) if len(x) < decisions else x

        def of_batches(batches: Sequence[TensorBatch | None]) -> TensorBatch | None:
            there = [batch for batch in batches if batch is not None]
            if len(there) < len(batches):
                return None
            columns = [batch.tensors() for batch in there]
            return there[0].of({name: torch.cat([fill(c[name]) for c in columns], 1) for name in columns[0]})

        inputs = of_batches([part.inputs for part in parts])
        assert inputs is not None
        steps = [_steps(part) for part in parts]
        joined: dict[str, Any] = dict.fromkeys(_HEAD)
        joined |= {name: torch.cat([fill(x[name]) for x in steps], 1) for name in steps[0]}
        follows = [part.next_values for part in parts if part.next_values is not None]
        firsts = accumulate((part.valid.shape[1] for part in parts), initial=0)
        scenarios = [np.full((decisions, part.valid.shape[1]), None, np.object_) for part in parts]
        for whole, part in zip(scenarios, parts, strict=True):
            whole[: len(part.scenarios)] = part.scenarios
        return Rollout(
            inputs=inputs,
            next_inputs=of_batches([part.next_inputs for part in parts]),
            **joined,
            next_values=torch.cat(follows) if follows else None,
            next_states=torch.cat([part.next_states for part in parts]),
            scenarios=np.concatenate(scenarios, 1),
            episodes=[
                replace(e, slot=e.slot + first)
                for first, part in zip(firsts, parts, strict=False)
                for e in part.episodes
            ],
            seconds={
                name: max(part.seconds.get(name, 0.0) for part in parts)
                for name in {k: 0 for p in parts for k in p.seconds}
            },
        )


def _steps(rollout: Rollout) -> dict[str, Tensor]:
    """The tensors [T, B, ..] that are there, by name."""
    found = {name: getattr(rollout, name) for name in _STEPS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
