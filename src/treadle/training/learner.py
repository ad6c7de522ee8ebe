"""PPO updates from rollouts.

Shapes: T decisions per slot, B slots, N = T * B decisions of a rollout, C actions of a chunk, A action dimensions,
K = C * A tokens, V values per decision.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from treadle.algorithms.advantages import estimate_gae, explained_variance, normalize
from treadle.algorithms.losses import (
    PolicyBatch,
    PolicyMetrics,
    PolicyObjective,
    ValueBatch,
    ValueMetrics,
    masked_mean,
    policy_loss,
    value_loss,
)
from treadle.algorithms.masks import flatten_actions, reduce_to_chunk, unflatten_actions
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.errors import ConfigError, DivergenceError
from treadle.policies.critic import Critic
from treadle.policies.protocol import Inputs, Policy, Sampling
from treadle.rollout.collector import Stopwatch
from treadle.training.optimizer import MasterAdamW


@dataclass(slots=True)
class Samples:
    """A rollout as N decisions, with what the algorithm made of it."""

    inputs: Inputs
    state: Tensor
    """[N, C, S]"""
    tokens: Tensor
    """[N, K]"""
    log_probs: Tensor
    """[N, K]"""
    values: Tensor
    """[N, V]"""
    returns: Tensor
    """[N, V]"""
    advantages: Tensor
    """[N, C] at action level, [N] at chunk level."""
    valid: Tensor
    """[N, C]"""


def estimate_advantages(rollout: Rollout, config: TrainConfig) -> Samples:
    """GAE at the configured level, and normalisation over the whole rollout."""
    algorithm = config.algorithm
    chunk = rollout.reward.shape[2]
    ended = rollout.terminated | rollout.truncated
    follows = torch.where(ended, rollout.final_values[..., None], 0.0)
    if algorithm.reward_level == "action":
        timeline = [flatten_actions(x) for x in (rollout.reward, rollout.values, ended, follows, rollout.valid)]
    else:
        view = reduce_to_chunk(rollout.reward, ended, rollout.valid)
        timeline = [view.rewards, rollout.values[..., 0], view.ended, follows.sum(-1), view.valid]
    rewards, values, endings, bootstrap, valid = timeline
    advantages, returns = estimate_gae(
        rewards,
        values,
        endings,
        bootstrap,
        rollout.next_values,
        valid,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
    )
    if algorithm.normalize_advantages:
        advantages = normalize(advantages, valid)
    if algorithm.reward_level == "action":
        advantages, returns = unflatten_actions(advantages, chunk), unflatten_actions(returns, chunk)
    else:
        returns = returns[..., None]
    return Samples(
        Inputs.cat(rollout.inputs),
        *(
            x.flatten(0, 1)
            for x in (
                rollout.state,
                rollout.tokens,
                rollout.log_probs,
                rollout.values,
                returns,
                advantages,
                rollout.valid,
            )
        ),
    )


class Learner:
    """Owns the optimizer, and turns rollouts into updates of a policy and its critic.

    Args:
        policy: what is trained; parameters that do not require gradients stay as they are.
        critic: its value head, or a network of its own.
        config: the run's settings.
        device: where updates are computed.

    Raises:
        ConfigError: A frozen dimension that the policy does not have, or no other is left.
    """

    def __init__(self, policy: Policy, critic: Critic, config: TrainConfig, device: torch.device) -> None:
        self.policy = policy
        self.critic = critic
        self._config = config
        self._device = device
        self._sampling = Sampling(**config.policy.sampling.model_dump())
        groups = policy.freeze(vision=config.policy.freeze_vision)
        self._policy_parameters = groups["policy"]
        self._critic_parameters = list(critic.parameters()) if isinstance(critic, nn.Module) else groups["value"]
        frozen = config.policy.frozen_dimensions
        mask = torch.tensor([dimension not in frozen for dimension in range(policy.action_dim)])
        if any(dimension >= policy.action_dim for dimension in frozen) or not mask.any():
            raise ConfigError(
                f"policy.frozen_dimensions: found {frozen}; allowed are some, not all, of the policy's action "
                f"dimensions, 0 to {policy.action_dim - 1}"
            )
        algorithm = config.algorithm
        self._objective = PolicyObjective(
            level=algorithm.ratio_level,
            action_dim=policy.action_dim,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            entropy_coefficient=algorithm.entropy_coefficient,
            dimension_mask=mask.to(device),
        )
        self.optimizer = MasterAdamW(
            [
                {"params": self._policy_parameters, "lr": config.optimizer.learning_rate},
                {"params": self._critic_parameters, "lr": config.critic.learning_rate},
            ],
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def update(self, rollout: Rollout, iteration: int) -> dict[str, float]:
        """One iteration's epochs over a rollout. Returns metrics by name, `time/...` in seconds.

        Raises:
            DivergenceError: A loss or gradient is not finite; parameters are as before that step.
        """
        watch = Stopwatch()
        samples = estimate_advantages(rollout, self._config)
        played = self._value_mask(samples.valid)
        explained = explained_variance(samples.values, samples.returns, played)
        metrics = {
            "critic/explained_variance": float(explained),
            "critic/mean_return": float(masked_mean(samples.returns, played)),
        }
        self.optimizer.param_groups[0]["lr"] = metrics["update/learning_rate"] = self._learning_rate(iteration)
        if self.critic.reads_state:
            with watch("critic"):
                metrics["critic/loss"] = self._fit_critic(samples, iteration)
        if not self.critic.reads_state or iteration >= self._config.critic.warmup_iterations:
            with watch("update"):
                metrics |= self._fit_policy(samples, iteration)
        return metrics | {f"time/{name}": seconds for name, seconds in watch.seconds.items()}

    def _fit_policy(self, samples: Samples, iteration: int) -> dict[str, float]:
        """Epochs of minibatches through the policy, with the value loss where the critic is its head."""
        algorithm = self._config.algorithm
        self.policy.train()
        metrics: dict[str, float] = {}
        totals: list[PolicyMetrics] = []
        losses, norms, value_losses = [], [], []
        for epoch in range(algorithm.epochs):
            epoch_kl = []
            for minibatch in self._minibatches(len(samples.tokens), algorithm.minibatch, iteration, epoch):
                entries = self._objective.entries(samples.valid[minibatch].to(self._device)).sum()
                values = self._value_mask(samples.valid[minibatch]).sum()
                total: PolicyMetrics | None = None
                loss_sum = value_sum = 0.0
                for rows in minibatch.split(algorithm.micro_batch):
                    loss, part, value, gap = self._losses(samples, rows, entries, values)
                    metrics.setdefault("update/log_prob_gap", gap)
                    (loss + self._config.critic.coefficient * value).backward()
                    total = part if total is None else total + part
                    loss_sum += float(loss.detach())
                    value_sum += float(value.detach())
                assert total is not None
                self._finite("policy loss", loss_sum)
                self._finite("value loss", value_sum)
                norms.append(self._step(iteration))
                totals.append(total)
                epoch_kl.append(float(total.kl))
                losses.append(loss_sum)
                value_losses.append(value_sum)
            if algorithm.target_kl is not None and sum(epoch_kl) / len(epoch_kl) > algorithm.target_kl:
                break
        metrics |= {
            "update/policy_loss": _mean(losses),
            "update/approximate_kl": _mean([float(total.kl) for total in totals]),
            "update/clip_share": _mean([float(total.clip_share) for total in totals]),
            "update/ratio_max": max(float(total.ratio_max) for total in totals),
            "update/entropy": _mean([float(total.entropy) for total in totals]),
            "update/gradient_norm": _mean(norms),
            "update/steps": float(len(norms)),
            "update/valid_share": float(samples.valid.float().mean()),
        }
        if not self.critic.reads_state:
            metrics["critic/loss"] = _mean(value_losses)
        return metrics

    def _losses(
        self, samples: Samples, rows: Tensor, entries: Tensor, value_entries: Tensor
    ) -> tuple[Tensor, PolicyMetrics, Tensor, float]:
        """Policy loss, its metrics, value loss and the largest log-prob gap of one micro-batch."""
        inputs = samples.inputs.take(rows).to(self._device)
        old_log_probs = samples.log_probs[rows].to(self._device)
        valid = samples.valid[rows].to(self._device)
        evaluation = self.policy.evaluate(inputs, samples.tokens[rows].to(self._device), self._sampling)
        batch = PolicyBatch(
            log_probs=evaluation.log_probs,
            old_log_probs=old_log_probs,
            entropy=evaluation.entropy,
            advantages=samples.advantages[rows].to(self._device),
            valid=valid,
        )
        loss, metrics = policy_loss(batch, self._objective, entries)
        value = torch.zeros((), device=self._device)
        if not self.critic.reads_state:
            assert evaluation.values is not None
            value = self._value_loss(samples, rows, evaluation.values, value_entries)[0]
        gap = float((evaluation.log_probs.detach() - old_log_probs).abs().max())
        return loss, metrics, value, gap

    def _fit_critic(self, samples: Samples, iteration: int) -> float:
        """Epochs of minibatches through a critic of its own."""
        config = self._config.critic
        losses = []
        for epoch in range(config.epochs):
            for rows in self._minibatches(len(samples.tokens), self._config.algorithm.minibatch, iteration, -1 - epoch):
                values = self.critic(None, samples.state[rows].to(self._device))
                loss = self._value_loss(samples, rows, values, self._value_mask(samples.valid[rows]).sum())[0]
                loss.backward()
                norm = nn.utils.clip_grad_norm_(self._critic_parameters, self._config.optimizer.gradient_norm)
                self._finite("value loss", float(loss.detach()))
                self._finite("gradient of the critic", float(norm))
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
        return _mean(losses)

    def _value_loss(
        self, samples: Samples, rows: Tensor, values: Tensor, entries: Tensor
    ) -> tuple[Tensor, ValueMetrics]:
        batch = ValueBatch(
            values=values,
            old_values=samples.values[rows].to(self._device),
            returns=samples.returns[rows].to(self._device),
            valid=self._value_mask(samples.valid[rows]).to(self._device),
        )
        return value_loss(batch, self._config.critic.clip, self._config.critic.huber_delta, entries)

    def _value_mask(self, valid: Tensor) -> Tensor:
        """[.., C] actions played, as a mask of values [.., V]."""
        return valid if self._config.algorithm.reward_level == "action" else valid.any(-1, keepdim=True)

    def _step(self, iteration: int) -> float:
        """Clip, check and apply gradients; returns the policy's gradient norm."""
        limit = self._config.optimizer.gradient_norm
        norm = nn.utils.clip_grad_norm_(self._policy_parameters, limit)
        self._finite("gradient of the policy", float(norm))
        if not self.critic.reads_state:
            self._finite("gradient of the critic", float(nn.utils.clip_grad_norm_(self._critic_parameters, limit)))
            if iteration < self._config.critic.warmup_iterations:
                for parameter in self._policy_parameters:
                    parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _finite(self, name: str, x: float) -> None:
        if not math.isfinite(x):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergenceError(
                f"{name} is {x}: training stopped, and the last checkpoint is as it was. Lower "
                "optimizer.learning_rate or optimizer.gradient_norm, and resume with the same command"
            )

    def _learning_rate(self, iteration: int) -> float:
        """0 while the critic warms up, then linear growth, then linear decay to `final_share` at the last iteration."""
        config, start = self._config.optimizer, self._config.critic.warmup_iterations
        position = iteration - start
        if position < 0:
            return 0.0
        if position < config.warmup_iterations:
            return config.learning_rate * (position + 1) / (config.warmup_iterations + 1)
        decaying = max(1, self._config.iterations - 1 - start - config.warmup_iterations)
        share = (position - config.warmup_iterations) / decaying
        return config.learning_rate * (1 - (1 - config.final_share) * share)

    def _minibatches(self, count: int, size: int, iteration: int, epoch: int) -> Iterator[Tensor]:
        """Rows of each minibatch: a permutation of its own for every iteration and epoch, remainder included.

        Epochs of a critic of its own count -1, -2, ...
        """
        # Not `hash`, for which -1 and -2 are the same.
        entropy = [self._config.seed, iteration, abs(epoch), int(epoch < 0)]
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed)
        yield from torch.randperm(count, generator=generator).split(size)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the policy's weights."""
        critic = self.critic.state_dict() if isinstance(self.critic, nn.Module) else {}
        return {"optimizer": self.optimizer.state_dict(), "critic": critic}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.critic, nn.Module):
            self.critic.load_state_dict(state["critic"])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
