"""Filtered behaviour cloning: imitate the episodes that succeeded.

Shapes: T decisions, B slots, C actions of a chunk, n decisions that are imitated, P and E of log-probs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from treadle.data.rollout import Rollout
from treadle.policies.protocol import Sampling
from treadle.training.algorithm import Algorithm, Training
from treadle.training.health import check_finite
from treadle.training.optimizer import MasterAdamW
from treadle.training.schedule import draw_minibatches
from treadle_reach.settings import FilteredBCConfig


class FilteredBC(Algorithm):
    """Raises the log-probs of what was decided in successful episodes. Any policy can be trained by it."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        assert isinstance(training.config.algorithm, FilteredBCConfig)
        self.settings = training.config.algorithm
        self.sampling = Sampling(**training.config.policy.sampling.model_dump())
        self.parameters = training.policy.freeze(training.config.policy.freeze_vision)["policy"]
        optimizer = training.config.optimizer
        self.optimizer = MasterAdamW(self.parameters, lr=optimizer.learning_rate, weight_decay=optimizer.weight_decay)
        self.imitated = 0
        """Successful episodes so far."""

    def wants_more(self, rollouts: Sequence[Rollout]) -> bool:
        """Until there are enough successes, or too many rollouts."""
        found = sum(int(successes(rollout).sum()) for rollout in rollouts)
        return found < self.settings.successes and len(rollouts) < self.settings.rounds

    def update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        """See `Algorithm.update`."""
        settings, training = self.settings, self.training
        # The decisions of successful episodes; a mask [T, B] leaves a batch [n].
        chosen = [rollout.valid.any(-1) & successes(rollout) for rollout in rollouts]
        inputs = type(rollouts[0].inputs).cat([r.inputs.take(rows) for r, rows in zip(rollouts, chosen, strict=True)])
        choices = torch.cat([r.choices[rows] for r, rows in zip(rollouts, chosen, strict=True)])
        valid = torch.cat([r.valid[rows] for r, rows in zip(rollouts, chosen, strict=True)])
        self.imitated += sum(int(successes(rollout).sum()) for rollout in rollouts)
        losses: list[float] = []
        training.policy.train()
        for epoch in range(settings.epochs):
            seed = training.config.seed
            for rows in draw_minibatches(len(choices), settings.minibatch, seed, iteration, epoch):
                if len(rows):
                    batch = inputs.take(rows).to(training.device), choices[rows].to(training.device)
                    losses.append(self._step(self._loss(*batch, valid[rows].to(training.device))))
        metrics = {"update/steps": float(len(losses)), "update/imitated_episodes": float(self.imitated)}
        return metrics | ({"update/policy_loss": sum(losses) / len(losses)} if losses else {})

    def _loss(self, inputs: Any, choices: Tensor, valid: Tensor) -> Tensor:
        """The mean of -log p over the actions [n, C] that were played."""
        log_probs = self.training.policy.evaluate(inputs, choices, self.sampling).log_probs.sum(-1)
        # A policy with one log-prob for the chunk, P = 1, has decided it all before the first action.
        played = valid[:, : log_probs.shape[1]]
        return -(log_probs * played).sum() / played.sum()

    def _step(self, loss: Tensor) -> float:
        check_finite("loss of filtered_bc", loss)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.training.config.optimizer.gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    @property
    def trained(self) -> list[nn.Parameter]:
        """See `Algorithm.trained`."""
        return self.parameters

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """Say where there was nothing to learn from."""
        rounds = f"in {self.settings.rounds} rollouts (algorithm.rounds)"
        said = f"no episode succeeded {rounds}, so the policy is as it was"
        return {} if metrics["update/steps"] else {"no_success": said}

    def state_dict(self) -> dict[str, Any]:
        """See `Algorithm.state_dict`."""
        return {"optimizer": self.optimizer.state_dict(), "imitated": self.imitated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.imitated = state["imitated"]


def successes(rollout: Rollout) -> Tensor:
    """[B] bool: the goal was reached in the one episode that each slot has played."""
    return rollout.success.any(-1).any(0)
