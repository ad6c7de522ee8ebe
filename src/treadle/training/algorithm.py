"""What an algorithm is: it turns rollouts into updates of a policy and its critic."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.plugins import import_callable
from treadle.policies.protocol import Policy
from treadle.training.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Training:
    """Everything that an algorithm is made with."""

    policy: Policy
    """The policy to train; `Policy.freeze` says which of its parameters."""
    critic: nn.Module | None
    """A network of its own on privileged states, as `PrivilegedCritic`; None where the policy's head values what it
    reads, or nothing does."""
    config: TrainConfig
    """The run's settings; `config.algorithm` holds the algorithm's own."""
    device: torch.device
    """Where updates are computed."""
    load_reference: Callable[[], Policy]
    """Loads a copy of the run's first policy, to keep it frozen; a sharded one, where the policy is sharded."""
    ranks: Ranks = ALONE
    """Processes that make the update together, each with rollouts of its own slots. With a sharded policy they are
    `treadle.training.sharding.ShardedRanks`."""


class Algorithm(ABC):
    """Turns rollouts into updates. Its settings say what rollouts must hold: `AlgorithmConfig.needs`.

    The settings name the subclass as `implementation`. It is made with a `Training`.
    """

    def __init__(self, training: Training) -> None:
        self.training = training

    def wants_more(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether the next update needs more than these rollouts. It is asked before every rollout, on all ranks, which
        must agree. By default one is enough.
        """
        return not rollouts

    def prepare(self, rollouts: Sequence[Rollout], iteration: int) -> None:  # noqa: B027 - there may be nothing to do
        """Do what can be done of the next update, of a policy that has had `iteration` updates, while the rest of its
        rollouts is played; called with overlap stream whenever one more is there, on all ranks. Without a rollout, drop
        what was prepared.

        Raises:
            DivergenceError: As `update`.
            RankError: As `update`.
        """

    @abstractmethod
    def update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        """Update the policy, which has had `iteration` updates, from its rollouts. Returns metrics of all ranks by
        name; seconds named `time/...` are those of this rank.

        Raises:
            DivergenceError: A number is not finite, on any rank; parameters are as before that step.
            RankError: Ranks do not fit together, or one is missing.
        """

    @property
    @abstractmethod
    def trained(self) -> list[nn.Parameter]:
        """The policy's parameters that updates change, without a value head."""

    def offload(self) -> None:  # noqa: B027 - there may be nothing to move
        """Move to the CPU's memory what only updates need, such as by `MasterAdamW.offload`; the next update brings it
        back. Called after an update if the configuration asks for it.
        """

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """Sentences that a person should read, each by a name of its own, from an iteration's metrics. It is called
        after each iteration, on one rank; the recorder does not repeat a name at once.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the policy's weights: tensors and plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - there may be nothing to go on from
        """Go on from `state`."""


def make_algorithm(training: Training) -> Algorithm:
    """The algorithm that a run's settings name. Raises ConfigError where it cannot be imported."""
    implementation = training.config.algorithm.implementation
    made = import_callable("algorithm.kind", implementation, "class")(training)
    assert isinstance(made, Algorithm), f"{implementation} is no treadle.training.algorithm.Algorithm"
    return made
