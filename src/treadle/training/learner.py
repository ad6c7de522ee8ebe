"""Updates of a policy and its critic from rollouts."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from treadle.algorithms.losses import PolicyMetrics
from treadle.algorithms.reference import adapt_coefficient
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.errors import ConfigError, DivergenceError
from treadle.policies.critic import Critic
from treadle.policies.protocol import Policy
from treadle.rollout.collector import Stopwatch
from treadle.training.critic_fit import CriticFit
from treadle.training.health import check_finite, check_gradients, check_rollouts
from treadle.training.optimizer import MasterAdamW
from treadle.training.passes import Anchors, Passed, PolicyPasses
from treadle.training.ranks import ALONE, Ranks
from treadle.training.samples import Samples, estimate_advantages, find_estimator, measure_shares
from treadle.training.schedule import draw_minibatches, learning_rate_share


class Learner:
    """Owns the optimizer, and turns rollouts into updates of a policy and its critic.

    Args:
        policy: what is trained; parameters that do not require gradients stay as they are.
        critic: its value head, or a network of its own.
        config: the run's settings.
        device: where updates are computed.
        reference: the frozen policy that the loss keeps near, where it has a weight.
        ranks: processes that make the update together, each with rollouts of its own slots.

    Raises:
        ConfigError: A frozen dimension that the policy does not have, or no other is left; an estimator or loss that
            cannot be imported.
    """

    def __init__(
        self,
        policy: Policy,
        critic: Critic,
        config: TrainConfig,
        device: torch.device,
        reference: Policy | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        assert isinstance(policy, nn.Module)
        self._module: nn.Module = policy
        self.policy: Policy = policy
        self.critic = critic
        self._config = config
        self._reference = reference
        self._ranks = ranks
        self._reference_coefficient = config.algorithm.reference.coefficient
        self._estimator = find_estimator(config.algorithm.estimator)
        groups = policy.freeze(vision=config.policy.freeze_vision)
        self._policy_parameters = groups["policy"]
        self._critic_parameters = list(critic.parameters()) if isinstance(critic, nn.Module) else groups["value"]
        self._dimension_mask = _trained_dimensions(config.policy.frozen_dimensions, policy.action_dim)
        self._critic_fit = CriticFit(critic, config, device, ranks)
        self._passes = PolicyPasses(policy, self._critic_fit, config, self._dimension_mask, device, ranks)
        self.optimizer = MasterAdamW(
            [
                {"params": self._policy_parameters, "lr": config.optimizer.learning_rate},
                {"params": self._critic_parameters, "lr": config.critic.learning_rate},
            ],
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        """One iteration's epochs over what was collected for it. Returns metrics by name, of all ranks; `time/...`, in
        seconds, is of this one.

        Raises:
            DivergenceError: Something is not finite, on whichever rank; parameters are as before that step.
            RankError: Ranks do not fit together, or one is missing.
        """
        try:
            return self._update(rollouts, iteration)
        except DivergenceError:
            self.optimizer.zero_grad(set_to_none=True)
            raise

    def gradient(self, rollouts: Sequence[Rollout], iteration: int) -> Tensor:
        """[P] on the CPU: the gradient of the policy's loss over all that was collected, as one minibatch; 0 where
        nothing of it is trained. Changes nothing.
        """
        samples = estimate_advantages(rollouts, self._config.algorithm, self._estimator, self._ranks)
        samples = samples.take(samples.trained)
        place = self._ranks.place(samples.order)
        if len(place):
            self.policy.train()
            weights = samples.weights(self._ranks) if self._config.algorithm.trajectory_weights else None
            (drawn,) = draw_minibatches(len(place), len(place), self._config.seed, iteration, 0)
            self._passes.accumulate(samples, weights, self._anchors(samples, iteration), place[drawn], iteration)
            self._ranks.sum_gradients(self._policy_parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._policy_parameters]
        gradient = torch.cat([part.flatten().float().cpu() for part in parts])
        self.optimizer.zero_grad(set_to_none=True)
        return gradient

    def _update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        watch, config, ranks = Stopwatch(), self._config, self._ranks
        ranks.check_same(self._named_parameters())
        with ranks.together(DivergenceError):
            check_rollouts(rollouts)
        samples = estimate_advantages(rollouts, config.algorithm, self._estimator, ranks)
        with ranks.together(DivergenceError):
            check_finite("advantages", samples.advantages)
        metrics = measure_shares(rollouts, samples, config.algorithm, self._dimension_mask, ranks)
        behind = iteration - samples.versions
        versions_behind, decisions = ranks.sum(torch.tensor([int(behind.sum()), len(behind)])).tolist()
        metrics["update/staleness"] = versions_behind / max(decisions, 1)
        self.optimizer.param_groups[0]["lr"] = metrics["update/learning_rate"] = self._learning_rate(iteration)
        if config.has_critic:
            metrics |= self._critic_fit.describe(samples)
            if not self._critic_fit.is_head:
                with watch("critic"):
                    metrics["critic/loss"] = self._critic_fit.fit(samples, self.optimizer, iteration)
        if self._critic_fit.is_head or iteration >= config.critic_warmup:
            with watch("update"):
                metrics |= self._fit_policy(samples.take(samples.trained), iteration)
        return metrics | {f"time/{name}": seconds for name, seconds in watch.seconds.items()}

    def _fit_policy(self, samples: Samples, iteration: int) -> dict[str, float]:
        """Epochs of minibatches through the policy."""
        algorithm = self._config.algorithm
        place = self._ranks.place(samples.order)
        if not len(place):
            return {"update/steps": 0.0}
        self.policy.train()
        weights = samples.weights(self._ranks) if algorithm.trajectory_weights else None
        anchors = self._anchors(samples, iteration)
        passed: list[Passed] = []
        norms: list[float] = []
        for epoch in range(algorithm.epochs):
            start = len(passed)
            for drawn in draw_minibatches(len(place), algorithm.minibatch, self._config.seed, iteration, epoch):
                passed.append(self._passes.accumulate(samples, weights, anchors, place[drawn], iteration))
                norms.append(self._step(iteration))
            if algorithm.target_kl is not None:
                kl = [float(part.metrics.kl) for part in passed[start:]]
                if sum(kl) / len(kl) > algorithm.target_kl:
                    break
        metrics = _summarize(passed, len(place))
        metrics["update/gradient_norm"] = _mean(norms)
        if self._critic_fit.is_head:
            metrics["critic/loss"] = _mean([part.value_loss for part in passed])
        if self._reference is not None:
            metrics |= self._follow_reference(metrics["update/reference_kl"])
        return metrics

    def _anchors(self, samples: Samples, iteration: int) -> Anchors:
        """Log-probs under policies that stand still; passes are spent only where they are not known already."""
        anchors = Anchors()
        stale = (samples.versions < iteration).nonzero()[:, 0]
        # Of fresh data the proximal policy is the one that acted, but its weight is capped like that of stale data.
        if self._config.algorithm.decoupled and bool(self._ranks.sum(torch.tensor(len(stale)))):
            proximal = samples.log_probs.clone()
            proximal[stale] = self._passes.log_probs(self.policy, samples, stale)
            anchors.proximal = proximal
        if self._reference is not None:
            anchors.reference = self._passes.log_probs(self._reference, samples, torch.arange(len(samples)))
        return anchors

    def _follow_reference(self, kl: float) -> dict[str, float]:
        """Metrics of the divergence; its coefficient of the next iteration where that adapts."""
        metrics = {"update/reference_coefficient": self._reference_coefficient}
        target = self._config.algorithm.reference.target
        if target is not None:
            self._set_reference_coefficient(adapt_coefficient(self._reference_coefficient, kl, target))
        return metrics

    def _set_reference_coefficient(self, coefficient: float) -> None:
        self._reference_coefficient = coefficient
        self._passes.weigh_reference(coefficient)

    def _step(self, iteration: int) -> float:
        """Sum gradients over ranks, clip, check and apply them; returns the policy's gradient norm."""
        limit = self._config.optimizer.gradient_norm
        self._ranks.sum_gradients(
            [*self._policy_parameters, *(self._critic_parameters if self._critic_fit.is_head else [])]
        )
        norm = nn.utils.clip_grad_norm_(self._policy_parameters, limit)
        check_gradients("policy", norm, self._module, self._policy_parameters)
        if self._critic_fit.is_head:
            value_norm = nn.utils.clip_grad_norm_(self._critic_parameters, limit)
            check_gradients("critic", value_norm, self._module, self._critic_parameters)
            if iteration < self._config.critic_warmup:
                for parameter in self._policy_parameters:
                    parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _learning_rate(self, iteration: int) -> float:
        """Of the policy; 0 while the critic warms up."""
        config, warmup = self._config.optimizer, self._config.critic_warmup
        return config.learning_rate * learning_rate_share(
            iteration - warmup,
            self._config.iterations - warmup,
            config.warmup_iterations,
            config.final_share,
            config.schedule,
        )

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that updates change."""
        names = {id(parameter): name for name, parameter in self._module.named_parameters()}
        critic = self.critic.named_parameters() if isinstance(self.critic, nn.Module) else ()
        names |= {id(parameter): f"critic.{name}" for name, parameter in critic}
        for parameter in (*self._policy_parameters, *self._critic_parameters):
            yield names[id(parameter)], parameter

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters of the policy that updates change, a value head's aside."""
        return self._policy_parameters

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the policy's weights."""
        critic = self.critic.state_dict() if isinstance(self.critic, nn.Module) else {}
        return {
            "optimizer": self.optimizer.state_dict(),
            "critic": critic,
            "reference_coefficient": self._reference_coefficient,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self.critic, nn.Module):
            self.critic.load_state_dict(state["critic"])
        self._set_reference_coefficient(state["reference_coefficient"])


def _trained_dimensions(frozen: Sequence[int], action_dim: int) -> Tensor:
    """[A] bool, False for the frozen ones. Raises ConfigError."""
    mask = torch.tensor([dimension not in frozen for dimension in range(action_dim)])
    if any(dimension >= action_dim for dimension in frozen) or not mask.any():
        raise ConfigError(
            f"policy.frozen_dimensions: found {frozen}; allowed are some, not all, of the policy's action "
            f"dimensions, 0 to {action_dim - 1}"
        )
    return mask


def _summarize(passed: list[Passed], decisions: int) -> dict[str, float]:
    """Metrics of all minibatches of an update over so many decisions."""
    parts: list[PolicyMetrics] = [part.metrics for part in passed]

    def mean(name: str) -> float:
        return _mean([float(getattr(part, name)) for part in parts])

    metrics = {
        "update/policy_loss": _mean([part.loss for part in passed]),
        "update/approximate_kl": mean("kl"),
        "update/clip_share": mean("clip_share"),
        "update/ratio_min": min(float(part.ratio_min) for part in parts),
        "update/ratio_max": max(float(part.ratio_max) for part in parts),
        "update/entropy": mean("entropy"),
        "update/reference_kl": mean("reference_kl"),
        "update/stale_weight": mean("stale_weight"),
        # Kish's effective sample size, of the ratios as weights.
        "update/effective_samples": decisions * mean("ratio_mean") ** 2 / max(mean("ratio_square"), 1e-12),
        "update/steps": float(len(passed)),
    }
    first = passed[0]
    if first.gap_count:
        # Before the first step, rollout and trainer have the same weights.
        metrics["update/log_prob_gap"] = first.gap_max
        metrics["update/log_prob_gap_mean"] = first.gap_sum / first.gap_count
    return metrics


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
