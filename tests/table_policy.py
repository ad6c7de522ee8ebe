"""A policy whose log-probs, entropies and values are its parameters, so that a gradient is the slope of the loss.

Shapes: T decisions, B slots, N = T * B samples, C actions of a chunk, A action dimensions, V values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from fakes import scenario
from treadle.data.batch import TensorBatch
from treadle.data.rollout import Rollout
from treadle.data.step import EpisodeResult
from treadle.policies.protocol import Decision, Evaluation, Policy, Sampling


@dataclass(slots=True)
class Rows(TensorBatch):
    """Which row of the table each sample is."""

    rows: Tensor


class TablePolicy(Policy):
    """Log-probs [N, C, A], values [N, V] of a head if given, and an entropy of 1 everywhere."""

    def __init__(self, log_probs: Tensor, values: Tensor | None = None) -> None:
        super().__init__()
        self.chunk, self.action_dim = log_probs.shape[1:]
        self.log_probs = nn.Parameter(log_probs.clone())
        self.entropy = nn.Parameter(torch.ones_like(log_probs))
        if values is not None:
            self.value_head = nn.ParameterList([values.clone()])
        self.evaluated: list[list[int]] = []
        """Rows of each call of `evaluate`."""

    @property
    def value_outputs(self) -> int:
        return self.value_head[0].shape[1] if "value_head" in self._modules else 0

    def evaluate(self, inputs: Rows, choice: Tensor, sampling: Sampling) -> Evaluation:
        rows = inputs.rows
        self.evaluated.append(rows.tolist())
        values = self.value_head[0][rows] if self.value_outputs else None
        return Evaluation(self.log_probs[rows], self.entropy[rows], values)

    def prepare(self, *_: Any) -> Rows:
        raise NotImplementedError

    def act(self, *_: Any) -> Decision:
        raise NotImplementedError

    def save(self, directory: Path, *, merge: bool = True) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, directory: Path, **_: Any) -> Self:
        raise NotImplementedError


def table_rollout(policy: TablePolicy, rewards: Tensor, **fields: Any) -> Rollout:
    """A rollout by the policy, with rewards [T, B, C]; every decision is an episode that terminates with its last
    action, so that without normalisation GAE gives A = r - V. `fields` are other tensors of the rollout.
    """
    decisions, slots, chunk = rewards.shape
    terminated = torch.zeros(rewards.shape, dtype=torch.bool)
    terminated[..., -1] = True
    values = policy.value_head[0].detach() if policy.value_outputs else torch.zeros(decisions * slots, 1)
    tensors: dict[str, Any] = {
        "log_probs": policy.log_probs.detach().unflatten(0, (decisions, slots)).clone(),
        "values": values.unflatten(0, (decisions, slots)).clone(),
        # The number of the row, for critics that read it.
        "state": torch.arange(float(decisions * slots)).reshape(decisions, slots, 1, 1).repeat(1, 1, chunk, 1),
        "terminated": terminated,
        "truncated": torch.zeros_like(terminated),
        "valid": torch.ones_like(terminated),
        "final_values": torch.zeros(decisions, slots),
        "next_values": torch.zeros(slots),
        "final_states": torch.zeros(decisions, slots, 1),
        "next_states": torch.zeros(slots, 1),
        "versions": torch.full((decisions, slots), 3),
        "scenarios": np.full((decisions, slots), scenario(0)),
        "episodes": [],
    }
    return Rollout(
        inputs=Rows(torch.arange(decisions * slots).reshape(decisions, slots)),
        choices=torch.zeros(decisions, slots, dtype=torch.long),
        reward=rewards,
        success=terminated,
        seconds={},
        **tensors | fields,
    )


def group_rollout(policy: TablePolicy, lengths: list[int], scores: list[float], scenarios: list[int]) -> Rollout:
    """Episodes of one action per decision: slot b plays lengths[b] decisions and earns scores[b] with the last one. A
    score above 0 is a success.
    """
    decisions = max(lengths)
    place = torch.arange(decisions)[:, None, None]
    last = torch.tensor(lengths)[None, :, None] - 1
    ended = place == last
    played = [scenario(index) for index in scenarios]
    outcomes = zip(played, scores, lengths, strict=True)
    return table_rollout(
        policy,
        torch.where(ended, torch.tensor(scores)[None, :, None], 0.0),
        terminated=ended,
        valid=place <= last,
        scenarios=np.tile(np.array(played), (decisions, 1)),
        episodes=[EpisodeResult(each, score > 0, score > 0, score, length) for each, score, length in outcomes],
    )
