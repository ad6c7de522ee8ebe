"""What the tests of updates share."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gaussian_policy import GaussianPolicy
from miniature import learning_config
from treadle.algorithms.estimators import Estimate, Timeline
from treadle.config.schema import TrainConfig
from treadle.data.noise import Keys
from treadle.data.rollout import Rollout
from treadle.policies.protocol import Decision, Evaluation, Policy
from treadle.policies.sampling import Sampling
from treadle.training.algorithm import Training
from treadle.training.on_policy.ppo import PPO
from treadle.training.ranks import ALONE, Ranks

CPU = torch.device("cpu")
STATE = 5
"""Numbers of privileged state in `miniature.make_rollout`."""


def earned(timeline: Timeline) -> Estimate:
    """An estimator: what an action earns is its advantage."""
    return Estimate(timeline.rewards)


def rewarding(**algorithm: Any) -> TrainConfig:
    """A run without a critic, whose advantages are rewards."""
    settings = {"estimator": "update_samples:earned", "normalize_advantages": False, **algorithm}
    return learning_config(algorithm=settings, critic={"kind": "none"})


class JointGaussian(GaussianPolicy):
    """The joint log-prob of all that a decision consists of, in place of one for each number."""

    @property
    def entries(self) -> tuple[int, int]:
        return 1, 1

    def act(self, inputs: Any, sampling: Sampling, keys: Keys | None = None) -> Decision:
        decision = super().act(inputs, sampling, keys)
        return replace(decision, log_probs=_joint(decision.log_probs))

    def evaluate(self, inputs: Any, choice: Tensor, sampling: Sampling) -> Evaluation:
        found = super().evaluate(inputs, choice, sampling)
        return Evaluation(_joint(found.log_probs), _joint(found.entropy), found.values)


def _joint(x: Tensor) -> Tensor:
    return x.sum((1, 2), keepdim=True)


def make_ppo(
    policy: Policy,
    config: TrainConfig,
    critic: nn.Module | None = None,
    reference: Policy | None = None,
    ranks: Ranks = ALONE,
) -> PPO:
    """With the policy's head as critic by default."""

    def load_reference() -> Policy:
        assert reference is not None, "no reference was asked for"
        return reference

    return PPO(Training(policy, critic, config, CPU, load_reference, ranks))


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def changed(policy: Policy, before: dict[str, torch.Tensor]) -> set[str]:
    """Top-level parts of the policy whose weights differ from `before`."""
    after = policy.state_dict()
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def gradients(ppo: PPO, rollout: Rollout) -> list[list[torch.Tensor]]:
    """The gradients of each optimizer step of an update."""
    seen: list[list[torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    ppo.optimizer.register_step_pre_hook(keep)
    ppo.update([rollout], iteration=3)
    return seen
