"""The policy's gradient over decisions. Micro-batches change the memory that it takes, never the gradient.

Shapes: N decisions, P and E of log-probs (`Policy.entries`), V values per decision, A action dimensions.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from operator import add

import torch
from torch import Tensor

from treadle.algorithms.levels import valid_entries
from treadle.algorithms.losses import Loss, PolicyBatch, PolicyMetrics, PolicyObjective, policy_loss
from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.errors import DivergenceError, RankError
from treadle.plugins import import_callable
from treadle.policies.protocol import Evaluation, Policy, Sampling
from treadle.training.health import check_finite
from treadle.training.on_policy.batch import Batch, Samples
from treadle.training.on_policy.critic_fit import CriticFit
from treadle.training.on_policy.meters import SignalMeter
from treadle.training.ranks import ALONE, Ranks

MinibatchResult = dict[str, float]
"""Numbers of one minibatch: `loss`, `value_loss`, those of `PolicyMetrics`; and `gap_sum`, `gap_max` and `gap_count` of
|rollout's - trainer's log-prob|, over trained entries of decisions that the present weights drew.
"""

_JOINS: dict[str, Callable[[float, float], float]] = {
    "ratio_min": min,
    "ratio_max": max,
    "ratio_max_negative": max,
    "gap_max": max,
}
"""How numbers of two parts of a minibatch join; others add up."""
_METRICS = [field.name for field in fields(PolicyMetrics)]
_NOTHING = dict.fromkeys(["loss", "value_loss", *_METRICS, "gap_sum", "gap_max", "gap_count"], 0.0) | {
    "ratio_min": math.inf
}


def join_results(parts: Iterable[MinibatchResult]) -> MinibatchResult:
    """The result of all parts of a minibatch: micro-batches, or ranks."""
    whole = dict(_NOTHING)
    for part in parts:
        whole = {name: _JOINS.get(name, add)(x, part[name]) for name, x in whole.items()}
    return whole


class PolicyGradient:
    """Computes the gradient of a policy, and of its value head if that is the critic.

    Args:
        policy: what is trained.
        critic: where it is the policy's head, its loss is added.
        config: the run's settings.
        dimension_mask: [A] bool, the action dimensions that are trained.
        device: where it is computed.
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
        assert isinstance(algorithm, OnPolicyConfig)
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
            entries=policy.entries,
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            entropy_coefficient=algorithm.entropy_coefficient,
            dual_clip=algorithm.dual_clip,
            dimension_mask=None if bool(dimension_mask.all()) else dimension_mask.to(device),
            stale_weight_cap=algorithm.stale_weight_cap,
            reference_coefficient=algorithm.reference.coefficient,
            reference_estimator=algorithm.reference.estimator,
        )

    def weigh_reference(self, coefficient: float) -> None:
        """Set the weight of the divergence from the reference."""
        self.objective = replace(self.objective, reference_coefficient=coefficient)

    @torch.no_grad()
    def log_probs(self, policy: Policy, batch: Batch, rows: Tensor) -> Tensor:
        """[rows, P, E] of trained decisions' choices under a policy."""
        found = [batch.trained.log_probs[:0]]
        for part in self._micro_batches(rows):
            if len(part):
                found.append(self._evaluate(policy, batch.trained, part).log_probs.cpu())
            else:
                self._evaluate(policy, *_any(batch))
        return torch.cat(found)

    def accumulate(
        self,
        batch: Batch,
        minibatch: Tensor,
        version: int,
        *,
        divided: bool = True,
        meter: SignalMeter | None = None,
    ) -> MinibatchResult:
        """Add the gradient of this rank's part of a minibatch to the parameters; the result is that of all ranks.

        With a chunk share p below 1, only the first share of the minibatch's rows is used; they are in random order. A
        division by p times the minibatch's entries keeps the gradient's expectation.

        Args:
            batch: of this rank.
            minibatch: [n] rows of all ranks' trained decisions; -1 where another rank holds the decision.
            version: updates that the present weights have had.
            divided: by the minibatch's entries; else losses, gradients and the result are sums.
            meter: it is shown what each half adds to the gradient.

        Raises:
            DivergenceError: a loss is not finite; it names what was at fault.
        """
        # Only a share of the decisions may be used.
        chosen = minibatch[: max(1, round(self._chunk_share * len(minibatch)))]
        # Losses are divided by the valid entries of the whole minibatch, on all ranks.
        valid = batch.trained.valid[minibatch[minibatch >= 0]].to(self._device)
        counts = [self.objective.valid_entries(valid).sum(), self._critic.entries(valid).sum()]
        totals = self._ranks.sum(torch.stack(counts)) if divided else torch.ones(2, device=self._device)
        if len(chosen) < len(minibatch):
            totals = totals * (len(chosen) / len(minibatch))
        # Forward and backward, one micro-batch after another.
        results: list[MinibatchResult] = []
        faults: list[DivergenceError] = []
        mine = chosen[chosen >= 0]
        for half, part in enumerate([mine] if meter is None else meter.halves(batch.trained, mine)):
            for rows in self._micro_batches(part):
                try:
                    results.append(self._pass(batch, rows, version, totals) if len(rows) else self._accompany(batch))
                except DivergenceError as error:
                    # Not yet: other ranks may count on this rank's further passes.
                    faults.append(error)
            if meter is not None:
                meter.note(half, len(part))
        with self._ranks.together(DivergenceError):
            if faults:
                raise faults[0]
            own = join_results(results)
            check_finite("policy loss", own["loss"])
            check_finite("value loss", own["value_loss"])
        each = self._ranks.gather(torch.tensor([list(own.values())], dtype=torch.float64))
        return join_results(dict(zip(own, row[0].tolist(), strict=True)) for row in each)

    def _pass(self, batch: Batch, rows: Tensor, version: int, totals: Tensor) -> MinibatchResult:
        """One micro-batch; `totals` counts the whole minibatch's entries of the loss and of values."""
        samples = batch.trained
        evaluation = self._evaluate(self._policy, samples, rows)
        decisions = PolicyBatch(
            log_probs=evaluation.log_probs,
            old_log_probs=samples.log_probs[rows].to(self._device),
            entropy=evaluation.entropy,
            advantages=samples.advantages[rows].to(self._device),
            valid=samples.valid[rows].to(self._device),
            proximal_log_probs=self._rows(batch.proximal, rows),
            reference_log_probs=self._rows(batch.reference, rows),
            weights=self._rows(batch.weights, rows),
        )
        loss, metrics = self._loss(decisions, self.objective, totals[0])
        value = self._critic.shared_loss(samples, rows, evaluation.values, totals[1])
        (loss + self._coefficient * value).backward()
        if not bool(torch.isfinite(loss) & torch.isfinite(value)):
            self._explain(decisions, evaluation)
        gap = self._gaps(decisions, samples.versions[rows] == version)
        return {
            "loss": float(loss.detach()),
            "value_loss": float(value.detach()),
            **dict(zip(_METRICS, torch.stack([getattr(metrics, name) for name in _METRICS]).tolist(), strict=True)),
            "gap_sum": float(gap.sum()),
            "gap_max": float(gap.amax()) if gap.numel() else 0.0,
            "gap_count": gap.numel(),
        }

    def _accompany(self, batch: Batch) -> MinibatchResult:
        """A pass beside those of other ranks, whose gradient is 0."""
        evaluation = self._evaluate(self._policy, *_any(batch))
        # The same parameters get a gradient as in the others' passes.
        outputs = [evaluation.log_probs]
        if self._critic.is_head and evaluation.values is not None:
            outputs.append(evaluation.values)
        torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs])
        return _NOTHING

    def _micro_batches(self, rows: Tensor) -> Sequence[Tensor]:
        """Parts of the rows; empty ones at the end, if other ranks have more and each pass is of all ranks."""
        parts = rows.split(self._micro_batch) if len(rows) else ()
        return (*parts, *[rows[:0]] * (self._ranks.passes(len(parts)) - len(parts)))

    def _evaluate(self, policy: Policy, samples: Samples, rows: Tensor) -> Evaluation:
        inputs = samples.inputs.take(rows).to(self._device)
        return policy.evaluate(inputs, samples.choices[rows].to(self._device), self._sampling)

    def _rows(self, x: Tensor | None, rows: Tensor) -> Tensor | None:
        return None if x is None else x[rows].to(self._device)

    def _gaps(self, batch: PolicyBatch, fresh: Tensor) -> Tensor:
        """Absolute differences of log-probs between rollout and trainer, for each entry that counts."""
        mask = valid_entries(batch.valid, "token", self.objective.entries, self.objective.dimension_mask)
        mask = mask & fresh.to(self._device)[:, None, None]
        return (batch.log_probs.detach() - batch.old_log_probs)[mask].abs()

    def _explain(self, batch: PolicyBatch, evaluation: Evaluation) -> None:
        """Raise DivergenceError for the first tensor that made a loss not finite."""
        check_finite("log-probs of the policy", evaluation.log_probs.detach())
        check_finite("entropy of the policy", evaluation.entropy.detach())
        if evaluation.values is not None:
            check_finite("values of the policy's head", evaluation.values.detach())
        check_finite("advantages", batch.advantages)


def _any(batch: Batch) -> tuple[Samples, Tensor]:
    """A decision of this rank, whichever. Raises RankError if there is none."""
    if not len(batch.samples):
        raise RankError(
            "this rank has no decision that was played: passes of a sharded policy are of all ranks, and each needs "
            "samples; give every rank slots that play"
        )
    return batch.samples, torch.zeros(1, dtype=torch.long)
