"""Forward and backward passes of the policy over decisions, in micro-batches that change memory and never the gradient.

Shapes: N decisions, K action tokens, V values per decision.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from treadle.algorithms.levels import valid_entries
from treadle.algorithms.losses import Loss, PolicyBatch, PolicyMetrics, PolicyObjective, policy_loss
from treadle.config.schema import TrainConfig
from treadle.plugins import import_callable
from treadle.policies.protocol import Evaluation, Policy, Sampling
from treadle.training.critic_fit import CriticFit
from treadle.training.health import check_finite
from treadle.training.samples import Samples


@dataclass(slots=True)
class Anchors:
    """Log-probs [N, K] of the decisions under policies that stand still during an update."""

    proximal: Tensor | None = None
    """The policy at the start of the update; of data that it drew itself, what it noted then."""
    reference: Tensor | None = None
    """The frozen reference."""


@dataclass(slots=True)
class Passed:
    """What the passes over one minibatch found; its gradients are in the parameters."""

    loss: float
    value_loss: float
    metrics: PolicyMetrics
    gap_sum: float
    """Of |rollout's - trainer's log-prob|, over the trained tokens of decisions that the present weights drew."""
    gap_max: float
    gap_count: int


class PolicyPasses:
    """Passes over a policy, and over its value head where that is the critic.

    Args:
        policy: what is trained.
        critic: where it is the policy's head, its loss is added.
        config: the run's settings.
        dimension_mask: [A] bool, the action dimensions that are trained.
        device: where passes are computed.
    """

    def __init__(
        self, policy: Policy, critic: CriticFit, config: TrainConfig, dimension_mask: Tensor, device: torch.device
    ) -> None:
        algorithm = config.algorithm
        self._policy = policy
        self._critic = critic
        self._device = device
        self._sampling = Sampling(**config.policy.sampling.model_dump())
        self._micro_batch = algorithm.micro_batch
        self._chunk_share = algorithm.chunk_share
        self._coefficient = config.critic.coefficient
        self._loss: Loss = (
            import_callable("algorithm.loss", algorithm.loss, "function") if ":" in algorithm.loss else policy_loss
        )
        self.objective = PolicyObjective(
            level=algorithm.ratio_level,
            action_dim=policy.action_dim,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            entropy_coefficient=algorithm.entropy_coefficient,
            dual_clip=algorithm.dual_clip,
            dimension_mask=dimension_mask.to(device),
            stale_weight_cap=algorithm.stale_weight_cap,
            reference_coefficient=algorithm.reference.coefficient,
            reference_estimator=algorithm.reference.estimator,
        )

    def weigh_reference(self, coefficient: float) -> None:
        """Set the weight of the divergence from the reference."""
        self.objective = replace(self.objective, reference_coefficient=coefficient)

    @torch.no_grad()
    def log_probs(self, policy: Policy, samples: Samples, rows: Tensor) -> Tensor:
        """[rows, K] of the samples' tokens under a policy."""
        found = [self._evaluate(policy, samples, part).log_probs.cpu() for part in rows.split(self._micro_batch)]
        return torch.cat(found) if found else samples.log_probs[:0]

    def accumulate(
        self, samples: Samples, weights: Tensor | None, anchors: Anchors, minibatch: Tensor, version: int
    ) -> Passed:
        """Add the gradient of a minibatch to the parameters.

        With a chunk share p below 1, only the first share of its rows, which are in random order, is passed; dividing
        by p times the minibatch's entries keeps the gradient's expectation.

        Raises:
            DivergenceError: a loss is not finite; it names what was at fault.
        """
        chosen = minibatch[: max(1, round(self._chunk_share * len(minibatch)))]
        entries = self.objective.entries(samples.valid[minibatch].to(self._device)).sum()
        value_entries = self._critic.entries(samples.valid[minibatch]).sum()
        if len(chosen) < len(minibatch):
            share = len(chosen) / len(minibatch)
            entries, value_entries = entries * share, value_entries * share
        found: list[Passed] = []
        for rows in chosen.split(self._micro_batch):
            evaluation = self._evaluate(self._policy, samples, rows)
            batch = PolicyBatch(
                log_probs=evaluation.log_probs,
                old_log_probs=samples.log_probs[rows].to(self._device),
                entropy=evaluation.entropy,
                advantages=samples.advantages[rows].to(self._device),
                valid=samples.valid[rows].to(self._device),
                proximal_log_probs=self._rows(anchors.proximal, rows),
                reference_log_probs=self._rows(anchors.reference, rows),
                weights=self._rows(weights, rows),
            )
            loss, metrics = self._loss(batch, self.objective, entries)
            value = self._critic.shared_loss(samples, rows, evaluation.values, value_entries)
            (loss + self._coefficient * value).backward()
            gap = self._gaps(batch, samples.versions[rows] == version)
            found.append(
                Passed(
                    float(loss.detach()),
                    float(value.detach()),
                    metrics,
                    float(gap.sum()),
                    float(gap.amax()) if gap.numel() else 0.0,
                    gap.numel(),
                )
            )
            if not torch.isfinite(torch.tensor([found[-1].loss, found[-1].value_loss])).all():
                self._explain(batch, evaluation)
        total = found[0].metrics
        for part in found[1:]:
            total = total + part.metrics
        passed = Passed(
            loss=sum(part.loss for part in found),
            value_loss=sum(part.value_loss for part in found),
            metrics=total,
            gap_sum=sum(part.gap_sum for part in found),
            gap_max=max(part.gap_max for part in found),
            gap_count=sum(part.gap_count for part in found),
        )
        check_finite("policy loss", passed.loss)
        check_finite("value loss", passed.value_loss)
        return passed

    def _evaluate(self, policy: Policy, samples: Samples, rows: Tensor) -> Evaluation:
        inputs = samples.inputs.take(rows).to(self._device)
        return policy.evaluate(inputs, samples.tokens[rows].to(self._device), self._sampling)

    def _rows(self, x: Tensor | None, rows: Tensor) -> Tensor | None:
        return None if x is None else x[rows].to(self._device)

    def _gaps(self, batch: PolicyBatch, fresh: Tensor) -> Tensor:
        """Absolute differences of log-probs, a number for each token that counts."""
        mask = valid_entries(batch.valid, "token", self.objective.action_dim, self.objective.dimension_mask)
        mask = mask.flatten(1) & fresh.to(self._device)[:, None]
        return (batch.log_probs.detach() - batch.old_log_probs)[mask].abs()

    def _explain(self, batch: PolicyBatch, evaluation: Evaluation) -> None:
        """Name what made a loss not finite."""
        check_finite("log-probs of the policy", evaluation.log_probs.detach())
        check_finite("entropy of the policy", evaluation.entropy.detach())
        if evaluation.values is not None:
            check_finite("values of the policy's head", evaluation.values.detach())
        check_finite("advantages", batch.advantages)
