"""Advantage-weighted regression (Peng et al. 2019) on a replay buffer: the shape of an off-policy algorithm.

Shapes: N transitions, T decisions, B slots, C actions of a chunk.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from treadle.data.batch import TensorBatch
from treadle.data.rollout import Rollout
from treadle.policies.protocol import Sampling
from treadle.training.algorithm import Algorithm, Training
from treadle.training.health import check_finite
from treadle.training.optimizer import MasterAdamW
from treadle_reach.settings import AWRConfig


class ReplayBuffer:
    """The latest transitions: tensors [N, ...] by name, on the CPU."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(next(iter(self.rows.values()))) if self.rows else 0

    def add(self, rows: dict[str, Tensor]) -> None:
        """Keep these, and forget the oldest."""
        old = self.rows or {name: x[:0] for name, x in rows.items()}
        self.rows = {name: torch.cat([old[name], x.cpu()])[-self.size :] for name, x in rows.items()}

    def draw(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """Some at random, from torch's generator."""
        chosen = torch.randint(len(self), (count,))
        return {name: x[chosen].to(device) for name, x in self.rows.items()}


def transitions(rollout: Rollout) -> dict[str, Tensor]:
    """The decisions of a rollout that were played, N of them; model inputs by the names of their tensors."""
    assert rollout.next_inputs is not None
    played = rollout.valid.any(-1)
    batches = {"inputs": rollout.inputs.take(played), "next_inputs": rollout.next_inputs.take(played)}
    rows = {f"{kind}.{name}": x for kind, batch in batches.items() for name, x in batch.tensors().items()}
    rows |= {"choices": rollout.choices[played], "reward": rollout.reward.sum(-1)[played]}
    return rows | {"terminated": rollout.terminated.any(-1)[played]}


class AWR(Algorithm):
    """The likelier a decision becomes, the better it was than the policy's own value of that moment."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        assert isinstance(training.config.algorithm, AWRConfig)
        self.settings = training.config.algorithm
        self.sampling = Sampling(**training.config.policy.sampling.model_dump())
        self.buffer = ReplayBuffer(self.settings.buffer)
        config, groups = training.config, training.policy.freeze(training.config.policy.freeze_vision)
        self.parameters, value = groups["policy"], groups["value"]
        self.optimizer = MasterAdamW(
            [
                {"params": self.parameters, "lr": config.optimizer.learning_rate},
                {"params": value, "lr": config.critic.learning_rate},
            ],
            weight_decay=config.optimizer.weight_decay,
        )

    def update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        """See `Algorithm.update`."""
        training, template = self.training, rollouts[0].inputs
        for rollout in rollouts:
            self.buffer.add(transitions(rollout))
        torch.manual_seed(training.config.seed * 1_000_003 + iteration)
        training.policy.train()
        losses = [self._step(template) for _ in range(self.settings.steps)]
        policy, value = (sum(column) / len(losses) for column in zip(*losses, strict=True))
        return {"update/policy_loss": policy, "critic/loss": value, "update/buffer": float(len(self.buffer))}

    def _step(self, template: TensorBatch) -> tuple[float, float]:
        """One step on what is drawn from the buffer; returns both losses."""
        settings, training = self.settings, self.training
        rows = self.buffer.draw(settings.minibatch, training.device)

        def batch(kind: str) -> TensorBatch:
            return template.of({name: rows[f"{kind}.{name}"] for name in template.tensors()})

        evaluation = training.policy.evaluate(batch("inputs"), rows["choices"], self.sampling)
        assert evaluation.values is not None
        # What a value should have been: the reward, and what the observation after the decision is worth.
        with torch.no_grad():
            follows = training.policy.values(batch("next_inputs"))[:, 0] * ~rows["terminated"]
            target = rows["reward"] + settings.gamma * follows
            advantage = target - evaluation.values[:, 0]
            weight = (advantage / (advantage.std() + 1e-6) / settings.temperature).exp().clamp(max=settings.weight_cap)
        policy_loss = -(weight * evaluation.log_probs.flatten(1).mean(1)).mean()
        value_loss = nn.functional.mse_loss(evaluation.values[:, 0], target)
        loss = policy_loss + training.config.critic.coefficient * value_loss
        check_finite("loss of awr", loss)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, training.config.optimizer.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return policy_loss.item(), value_loss.item()

    @property
    def trained(self) -> list[nn.Parameter]:
        """See `Algorithm.trained`."""
        return self.parameters

    def state_dict(self) -> dict[str, Any]:
        """The buffer belongs to it: a resumed run goes on as if it had never stopped."""
        return {"optimizer": self.optimizer.state_dict(), "buffer": self.buffer.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.buffer.rows = state["buffer"]
