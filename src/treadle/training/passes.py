"""Forward and backward passes of the policy over decisions, in micro-batches that change memory and never the gradient.

Shapes: N decisions, K action tokens, V values per decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import torch
from torch import Tensor

from treadle.algorithms.levels import valid_entries
from treadle.algorithms.losses import Loss, PolicyBatch, PolicyMetrics, PolicyObjective, policy_loss
from treadle.config.schema import TrainConfig
from treadle.errors import DivergenceError
from treadle.plugins import import_callable
from treadle.policies.protocol import Evaluation, Policy, Sampling
from treadle.training.critic_fit import CriticFit
from treadle.training.health import check_finite
from treadle.training.ranks import ALONE, Ranks
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
    gap_count: float

    @classmethod
    def nothing(cls) -> "Passed":
        """Of no decisions."""
        return cls(0.0, 0.0, PolicyMetrics.nothing(), 0.0, 0.0, 0.0)

    def __add__(self, other: "Passed") -> "Passed":
        """Of two parts of a minibatch."""
        return Passed(
            loss=self.loss + other.loss,
            value_loss=self.value_loss + other.value_loss,
            metrics=self.metrics + other.metrics,
            gap_sum=self.gap_sum + other.gap_sum,
            gap_max=max(self.gap_max, other.gap_max),
            gap_count=self.gap_count + other.gap_count,
        )

    def joined(self, ranks: Ranks) -> "Passed":
        """Of all ranks' parts."""
        own = (self.loss, self.value_loss, self.gap_sum, self.gap_max, self.gap_count)
        metrics = torch.stack([getattr(self.metrics, field.name) for field in fields(PolicyMetrics)])
        each = ranks.gather(torch.cat([torch.tensor(own, dtype=torch.float64), metrics.double().cpu()])[None])
        return reduce(Passed.__add__, map(Passed._of, each))

    @staticmethod
    def _of(row: Tensor) -> "Passed":
        loss, value_loss, gap_sum, gap_max, gap_count, *_ = row[0].tolist()
        return Passed(loss, value_loss, PolicyMetrics(*row[0, 5:]), gap_sum, gap_max, gap_count)


class PolicyPasses:
    """Passes over a policy, and over its value head where that is the critic.

    Args:
        policy: what is trained.
        critic: where it is the policy's head, its loss is added.
        config: the run's settings.
        dimension_mask: [A] bool, the action dimensions that are trained.
        device: where passes are computed.
        ranks: those that hold the batch.
    """

    def __init__(
        self,
        policy: Policy,
        critic: CriticFit,
        config: TrainConfig,
        dimension_mask: Tensor,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        algorithm = config.algorithm
        self._policy = policy
        self._critic = critic
        self._device = device
        self._ranks = ranks
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
        found = [self._evaluate(policy, samples, part).log_probs.cpu() for part in self._micro_batches(rows)]
        return torch.cat(found) if found else samples.log_probs[:0]

    def accumulate(
        self, samples: Samples, weights: Tensor | None, anchors: Anchors, minibatch: Tensor, version: int
    ) -> Passed:
        """Add the gradient of this rank's part of a minibatch to the parameters; what is returned is of all ranks.

        With a chunk share p below 1, only the first share of its rows, which are in random order, is passed; dividing
        by p times the minibatch's entries keeps the gradient's expectation.

        Args:
            samples: of this rank.
            weights: [N] of its decisions, or none.
            anchors: of its decisions.
            minibatch: [n] rows of all ranks; -1 where another rank holds the decision.
            version: updates that the present weights have had.

        Raises:
            DivergenceError: a loss is not finite; it names what was at fault.
        """
        chosen = minibatch[: max(1, round(self._chunk_share * len(minibatch)))]
        valid = samples.valid[minibatch[minibatch >= 0]].to(self._device)
        counts = [self.objective.entries(valid).sum(), self._critic.entries(valid).sum()]
        totals = self._ranks.sum(torch.stack(counts))
        if len(chosen) < len(minibatch):
            totals = totals * (len(chosen) / len(minibatch))
        found = Passed.nothing()
        with self._ranks.together(DivergenceError):
            for rows in self._micro_batches(chosen[chosen >= 0]):
                found = found + self._pass(samples, weights, anchors, rows, version, totals)
            check_finite("policy loss", found.loss)
            check_finite("value loss", found.value_loss)
        return found.joined(self._ranks)

    def _pass(
        self, samples: Samples, weights: Tensor | None, anchors: Anchors, rows: Tensor, version: int, totals: Tensor
    ) -> Passed:
        """A micro-batch of a minibatch with so many entries of the loss and of values in all."""
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
        loss, metrics = self._loss(batch, self.objective, totals[0])
        value = self._critic.shared_loss(samples, rows, evaluation.values, totals[1])
        (loss + self._coefficient * value).backward()
        if not bool(torch.isfinite(loss) & torch.isfinite(value)):
            self._explain(batch, evaluation)
        gap = self._gaps(batch, samples.versions[rows] == version)
        return Passed(
            float(loss.detach()),
            float(value.detach()),
            metrics,
            float(gap.sum()),
            float(gap.amax()) if gap.numel() else 0.0,
            gap.numel(),
        )

    def _micro_batches(self, rows: Tensor) -> Sequence[Tensor]:
        """None of no rows, of which `split` would make one without rows."""
        return rows.split(self._micro_batch) if len(rows) else ()

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
