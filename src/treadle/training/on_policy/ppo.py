"""Proximal policy optimisation (Schulman et al. 2017), and GRPO, which is the same update on other advantages."""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from treadle.algorithms.reference import adapt_coefficient
from treadle.config.on_policy import OnPolicyConfig
from treadle.data.rollout import Rollout
from treadle.data.span import Stopwatch
from treadle.errors import CheckpointError, ConfigError, DivergenceError
from treadle.policies.protocol import Policy
from treadle.reading import shown
from treadle.training.algorithm import Algorithm, Training
from treadle.training.health import check_finite, check_gradients, check_rollouts
from treadle.training.on_policy.alarms import Alarms
from treadle.training.on_policy.batch import Batch, find_estimator, make_batch
from treadle.training.on_policy.critic_fit import CriticFit
from treadle.training.on_policy.gradient import MinibatchResult, PolicyGradient
from treadle.training.on_policy.meters import Meters
from treadle.training.on_policy.selection import count_groups
from treadle.training.on_policy.stream import GradientStream
from treadle.training.on_policy.summary import mean_of, summarize
from treadle.training.optimizer import MasterAdamW
from treadle.training.schedule import draw_minibatches, learning_rate_share


class PPO(Algorithm):
    """Epochs of minibatches over the rollouts of an update, by the clipped objective.

    Raises:
        ConfigError: Frozen dimensions that the policy does not have, or that leave none to train; log-probs that do not
            fit the level of rewards; an estimator or loss that cannot be imported.
    """

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        config, policy = training.config, training.policy
        assert isinstance(config.algorithm, OnPolicyConfig)
        self.policy, self.critic = policy, training.critic
        self._config, self._algorithm = config, config.algorithm
        self._ranks = training.ranks
        self._watch = Stopwatch()
        self._reference_coefficient = self._algorithm.reference.coefficient
        self._reference = training.load_reference() if self._reference_coefficient else None
        find_estimator(self._algorithm.estimator)
        groups = policy.freeze(vision=config.policy.freeze_vision)
        self._policy_parameters = groups["policy"]
        self._critic_parameters = list(self.critic.parameters()) if self.critic is not None else groups["value"]
        self._dimension_mask = _trained_dimensions(config.policy.frozen_dimensions, policy)
        _check_positions(self._algorithm, policy)
        self._critic_fit = CriticFit(self.critic, config, training.device, self._ranks)
        self._gradient = PolicyGradient(
            policy, self._critic_fit, config, self._dimension_mask, training.device, self._ranks
        )
        self._meters = Meters(self._policy_parameters, config, self._ranks)
        self._alarms = Alarms(config, self._policy_parameters)
        streamed = config.overlap == "stream" and self._algorithm.not_streamed(config) is None
        self._stream = (
            GradientStream(
                self._gradient,
                self._algorithm,
                self._dimension_mask,
                self._ranks,
                self._add_frozen_log_probs,
                self._meters,
            )
            if streamed
            else None
        )
        self.optimizer = MasterAdamW(
            [
                {"params": self._policy_parameters, "lr": config.optimizer.learning_rate},
                {"params": self._critic_parameters, "lr": config.critic.learning_rate},
            ],
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=training.device.type in ("cpu", "cuda"),
        )

    def wants_more(self, rollouts: Sequence[Rollout]) -> bool:
        """True until there are `rounds` rollouts. If groups are filtered, also until as many groups remain, over all
        ranks, as `rounds` rollouts play, up to the limit of refills.
        """
        settings = self._algorithm
        if len(rollouts) < settings.rounds:
            return True
        counts = [count_groups(rollout, settings) for rollout in rollouts]
        kept, played = self._ranks.sum(torch.tensor([sum(kept for kept, _ in counts), counts[-1][1]])).tolist()
        wanted = settings.rounds * played
        return kept < wanted and len(rollouts) < settings.rounds + settings.filter.refills

    def prepare(self, rollouts: Sequence[Rollout], iteration: int) -> None:
        """See `Algorithm.prepare`. Back-propagates, where `OnPolicyConfig.not_streamed` has no objection."""
        if self._stream is None or iteration < self._config.critic_warmup:
            return
        if not rollouts:
            self._drop_gradients()
        with self._whole_or_nothing(), self._watch("update"):
            with self._ranks.together(DivergenceError):
                check_rollouts(rollouts[self._stream.count :])
            self.policy.train()
            self._stream.add([self._critic_fit.value(rollout) for rollout in rollouts], iteration)

    def update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        """See `Algorithm.update`."""
        with self._whole_or_nothing():
            return self._update(rollouts, iteration)

    @contextmanager
    def _whole_or_nothing(self) -> Generator[None, None, None]:
        try:
            yield
        except DivergenceError:
            self._drop_gradients()
            raise

    def _drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._meters.drop()
        if self._stream is not None:
            self._stream.clear()

    def _update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        config, ranks = self._config, self._ranks
        watch, self._watch = self._watch, Stopwatch()
        ranks.check_same(self._named_parameters())
        with ranks.together(DivergenceError):
            check_rollouts(rollouts)
        rollouts = [self._critic_fit.value(rollout) for rollout in rollouts]
        # Advantages, and which decisions are worth a gradient.
        batch = make_batch(rollouts, self._algorithm, self._dimension_mask, ranks)
        with ranks.together(DivergenceError):
            check_finite("advantages", batch.samples.advantages)
        # How old the data is, and the learning rate of this iteration.
        metrics = batch.shares
        behind = iteration - batch.samples.versions
        versions_behind, decisions = ranks.sum(torch.tensor([int(behind.sum()), len(behind)])).tolist()
        metrics["update/staleness"] = versions_behind / max(decisions, 1)
        self.optimizer.param_groups[0]["lr"] = metrics["update/learning_rate"] = self._learning_rate(iteration)
        if config.has_critic:
            metrics |= self._critic_fit.describe(batch.samples)
        if self._critic_fit.is_head or iteration >= config.critic_warmup:
            with watch("update"):
                metrics |= self._fit_policy(batch, iteration)
        # A critic with its own network learns by itself; a head has learnt with the policy.
        if config.has_critic and not self._critic_fit.is_head:
            with watch("critic"):
                metrics["critic/loss"] = self._critic_fit.fit(batch.samples, self.optimizer, iteration)
        return metrics | {f"time/{name}": seconds for name, seconds in watch.seconds.items()}

    def _fit_policy(self, batch: Batch, iteration: int) -> dict[str, float]:
        """Epochs of minibatches through the policy."""
        place = self._ranks.place(batch.trained.order)
        if not len(place):
            self._drop_gradients()
            return {"update/steps": 0.0}
        self.policy.train()
        self._meters.begin(iteration)
        results, norms = self._take_steps(batch, place, iteration)
        metrics = summarize(results, norms, len(place)) | self._meters.metrics
        if self._critic_fit.is_head:
            metrics["critic/loss"] = mean_of([result["value_loss"] for result in results])
        if self._reference is not None:
            metrics |= self._follow_reference(metrics["update/reference_kl"])
        return metrics

    def _take_steps(self, batch: Batch, place: Tensor, iteration: int) -> tuple[list[MinibatchResult], list[float]]:
        """Results and gradient norms of all minibatches."""
        algorithm = self._algorithm
        results: list[MinibatchResult] = []
        norms: list[float] = []
        if self._stream is not None and self._stream.count:
            # All of the batch has been propagated back as it came.
            results.append(self._stream.finish(self._policy_parameters))
            norms.append(self._step(iteration))
            self._stream.clear()
            return results, norms
        self._add_frozen_log_probs(batch, iteration)
        # Each epoch takes its own permutation of all ranks' decisions.
        for epoch in range(algorithm.epochs):
            start = len(results)
            for drawn in draw_minibatches(len(place), algorithm.minibatch, self._config.seed, iteration, epoch):
                meter = self._meters.signal
                results.append(self._gradient.accumulate(batch, place[drawn], iteration, meter=meter))
                norms.append(self._step(iteration))
            # Stop early if the policy has moved far enough.
            if algorithm.target_kl is not None:
                kl = [result["kl"] for result in results[start:]]
                if sum(kl) / len(kl) > algorithm.target_kl:
                    break
        return results, norms

    def _add_frozen_log_probs(self, batch: Batch, iteration: int) -> None:
        """Log-probs under policies that stand still during the update; only unknown ones are computed."""
        samples = batch.trained
        stale = (samples.versions < iteration).nonzero()[:, 0]
        # For fresh data the proximal policy is the one that acted, but its weight is capped like that of stale data.
        if self._algorithm.decoupled and bool(self._ranks.sum(torch.tensor(len(stale)))):
            batch.proximal = samples.log_probs.clone()
            batch.proximal[stale] = self._gradient.log_probs(self.policy, batch, stale)
        if self._reference is not None:
            batch.reference = self._gradient.log_probs(self._reference, batch, torch.arange(len(samples)))

    def _follow_reference(self, kl: float) -> dict[str, float]:
        """Metrics of the divergence; it also adapts the coefficient of the next iteration where asked."""
        metrics = {"update/reference_coefficient": self._reference_coefficient}
        target = self._algorithm.reference.target
        if target is not None:
            self._set_reference_coefficient(adapt_coefficient(self._reference_coefficient, kl, target))
        return metrics

    def _set_reference_coefficient(self, coefficient: float) -> None:
        self._reference_coefficient = coefficient
        self._gradient.weigh_reference(coefficient)

    def _step(self, iteration: int) -> float:
        """Sum gradients over ranks, clip, check and apply them; returns the policy's gradient norm."""
        limit = self._config.optimizer.gradient_norm
        self._ranks.sum_gradients(
            [*self._policy_parameters, *(self._critic_parameters if self._critic_fit.is_head else [])]
        )
        norm = self._ranks.clip_gradients(self._policy_parameters, limit)
        check_gradients("policy", norm, self.policy, self._policy_parameters, self._ranks)
        if self._critic_fit.is_head:
            value_norm = self._ranks.clip_gradients(self._critic_parameters, limit)
            check_gradients("critic", value_norm, self.policy, self._critic_parameters, self._ranks)
            if iteration < self._config.critic_warmup:
                for parameter in self._policy_parameters:
                    parameter.grad = None
        self._meters.watch(self.optimizer.step)
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _learning_rate(self, iteration: int) -> float:
        """The policy's rate; 0 while the critic warms up."""
        config, warmup = self._config.optimizer, self._config.critic_warmup
        return config.learning_rate * learning_rate_share(
            iteration - warmup,
            self._config.iterations - warmup,
            config.warmup_iterations,
            config.final_share,
            config.schedule,
        )

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that updates change."""
        names = {id(parameter): name for name, parameter in self.policy.named_parameters()}
        critic = self.critic.named_parameters() if self.critic is not None else ()
        names |= {id(parameter): f"critic.{name}" for name, parameter in critic}
        for parameter in (*self._policy_parameters, *self._critic_parameters):
            yield names[id(parameter)], parameter

    @property
    def trained(self) -> list[nn.Parameter]:
        """See `Algorithm.trained`."""
        return self._policy_parameters

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """See `Algorithm.alarms`."""
        return self._alarms.see(metrics)

    def offload(self) -> None:
        """See `Algorithm.offload`."""
        self.optimizer.offload()

    def state_dict(self) -> dict[str, Any]:
        """See `Algorithm.state_dict`."""
        critic = self.critic.state_dict() if self.critic is not None else {}
        return {
            "optimizer": self.optimizer.state_dict(),
            "critic": critic,
            "reference_coefficient": self._reference_coefficient,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        coefficient = state["reference_coefficient"]
        if not isinstance(coefficient, float) or not 0 <= coefficient < math.inf:
            raise CheckpointError(f"reference_coefficient: found {shown(coefficient)}; allowed: a number from 0")
        self._set_reference_coefficient(coefficient)


def _trained_dimensions(frozen: Sequence[int], policy: Policy) -> Tensor:
    """[A] bool, False for the frozen ones, and for those that are the same number whatever the policy says, because the
    statistics have no range for them. Raises ConfigError.
    """
    action_dim = policy.action_dim
    still = _still_dimensions(policy) if policy.entries[1] == action_dim else ()
    mask = torch.tensor([dimension not in (*frozen, *still) for dimension in range(action_dim)])
    if any(dimension >= action_dim for dimension in frozen) or not mask.any():
        raise ConfigError(
            f"policy.frozen_dimensions: found {list(frozen)}; allowed are some, not all, of the policy's action "
            f"dimensions, 0 to {action_dim - 1}"
        )
    if frozen and policy.entries[1] != action_dim:
        raise ConfigError(
            f"policy.frozen_dimensions: found {list(frozen)}; this policy has no log-probs of its own for each "
            "dimension, so none can be left out; use []"
        )
    return mask


def _still_dimensions(policy: Policy) -> Sequence[int]:
    """Dimensions that the data of the checkpoint's statistics never moved."""
    if policy.scaling is None:
        return ()
    scale = policy.scaling.action
    return np.flatnonzero(scale.scaled & (scale.low == scale.high)).tolist()


def _check_positions(algorithm: OnPolicyConfig, policy: Policy) -> None:
    """Raises ConfigError where advantages are finer than the policy's log-probs."""
    if algorithm.advantages_per_action and policy.entries[0] != policy.chunk:
        raise ConfigError(
            f"algorithm.reward_level 'action': this policy has one set of log-probs for a chunk of {policy.chunk} "
            "actions; use algorithm.reward_level 'chunk'"
        )
