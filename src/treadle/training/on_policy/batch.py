"""From rollouts to the batch of an update: advantages, decisions that give a gradient, and their weights.

Shapes: T decisions per slot, B slots, N decisions of all rollouts, C actions of a chunk, P and E of log-probs
(`Policy.entries`), V values per decision, S privileged state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce

import torch
from torch import Tensor

from treadle.algorithms.advantages import Moments, normalize
from treadle.algorithms.estimators import ESTIMATORS, Estimate, Estimator, Timeline
from treadle.algorithms.levels import valid_entries
from treadle.algorithms.masks import (
    episode_lengths,
    flatten_actions,
    reduce_to_chunk,
    trajectory_totals,
    trajectory_weights,
    unflatten_actions,
)
from treadle.config.on_policy import OnPolicyConfig
from treadle.data.batch import TensorBatch
from treadle.data.rollout import Rollout
from treadle.errors import RankError
from treadle.plugins import import_callable
from treadle.training.on_policy.selection import count_groups, number_scenarios, select_slots
from treadle.training.ranks import ALONE, Ranks

_PLACES = 2**21
"""An update has fewer rollouts, decisions and slots than this; three such digits fill an int64."""


@dataclass(slots=True)
class Samples:
    """Decisions that were played, with their advantages and returns."""

    inputs: TensorBatch
    state: Tensor
    """[N, C, S]"""
    choices: Tensor
    """[N, ...]"""
    log_probs: Tensor
    """[N, P, E]"""
    values: Tensor
    """[N, V]"""
    returns: Tensor
    """[N, V]"""
    advantages: Tensor
    """[N, C] at action level, [N] at chunk level."""
    valid: Tensor
    """[N, C]"""
    versions: Tensor
    """[N] of the policy that acted."""
    lengths: Tensor
    """[N] valid actions of the decision's episode."""
    trained: Tensor
    """[N] bool, the decision gives the policy a gradient; others belong to skipped groups."""
    order: Tensor
    """[N] int64, grows with rollout, decision and slot, counted over all ranks: the same for any number of ranks."""

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, rows: Tensor) -> "Samples":
        """The given rows, as indices or as a mask."""
        if rows.dtype == torch.bool and bool(rows.all()):
            return self
        return Samples(self.inputs.take(rows), **{name: getattr(self, name)[rows] for name in self._columns()})

    @staticmethod
    def cat(parts: "Sequence[Samples]") -> "Samples":
        """All parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in Samples._columns()}
        return Samples(parts[0].inputs.cat([part.inputs for part in parts]), **tensors)

    @classmethod
    def _columns(cls) -> list[str]:
        return [column.name for column in fields(cls)][1:]

    def slots(self) -> Tensor:
        """[N] where each was played, counted over all ranks."""
        return self.order % _PLACES

    def weights(self, ranks: Ranks = ALONE) -> Tensor:
        """[N] under which every episode counts the same, however long and on whichever rank."""
        return trajectory_weights(self.lengths, self.valid, ranks.sum(trajectory_totals(self.lengths, self.valid)))


def find_estimator(name: str) -> Estimator:
    """The estimator that a recipe names. Raises ConfigError."""
    return import_callable("algorithm.estimator", name, "function") if ":" in name else ESTIMATORS[name]


@dataclass(slots=True)
class Batch:
    """Everything that an update reads, made of its rollouts once."""

    samples: Samples
    """Every decision that was played, for the critic."""
    trained: Samples
    """Decisions that give the policy a gradient."""
    weights: Tensor | None
    """[trained] under which every episode counts the same; None weighs every action the same."""
    shares: dict[str, float] = field(default_factory=dict[str, float])
    """Which shares of the rollouts the policy learns from, and how much log-probs differ, as metrics."""
    proximal: Tensor | None = None
    """[trained, P, E] log-probs under the policy at the start of the update; for data that it drew itself, as noted
    then."""
    reference: Tensor | None = None
    """[trained, P, E] log-probs under the frozen reference."""


def make_batch(
    rollouts: Sequence[Rollout],
    algorithm: OnPolicyConfig,
    dimension_mask: Tensor,
    ranks: Ranks = ALONE,
) -> Batch:
    """The batch of all ranks' rollouts. `dimension_mask` [A] is False for action dimensions that are not trained.

    Raises RankError where a group is divided among ranks, or ranks have different numbers of rollouts.
    """
    samples = estimate_advantages(rollouts, algorithm, ranks)
    trained = samples.take(samples.trained)
    weights = trained.weights(ranks) if algorithm.trajectory_weights else None
    shares = measure_shares(rollouts, samples, algorithm, dimension_mask, ranks)
    return Batch(samples, trained, weights, shares | measure_spread(samples, dimension_mask, ranks))


def estimate_advantages(rollouts: Sequence[Rollout], algorithm: OnPolicyConfig, ranks: Ranks = ALONE) -> Samples:
    """Advantages at the configured level, normalised over all entries that give a gradient, of all rollouts and ranks.
    An estimator sees a rollout of one rank, so groups must be whole in it.

    Raises:
        RankError: A group is divided among ranks, or ranks have different numbers of rollouts.
    """
    if algorithm.group_size > 1:
        _check_groups(rollouts, algorithm, ranks)
    before = [int(sizes[: ranks.rank, 1].sum()) for sizes in _sizes(rollouts, ranks)]
    # Each rollout is estimated alone.
    estimate = find_estimator(algorithm.estimator)
    timelines = [_timeline(rollout, algorithm) for rollout in rollouts]
    estimates = [estimate(timeline) for timeline in timelines]
    # Groups without a gradient do not count for the normalisation, which covers all rollouts and ranks.
    selected = [select_slots(rollout, algorithm) for rollout in rollouts]
    if algorithm.normalize_advantages:
        counted = [timeline.valid & slots for timeline, slots in zip(timelines, selected, strict=True)]
        moments = [Moments.of(e.advantages, count) for e, count in zip(estimates, counted, strict=True)]
        (whole,) = join_moments([reduce(Moments.__add__, moments)], ranks)
        estimates = [
            replace(e, advantages=normalize(e.advantages, count, moments=whole))
            for e, count in zip(estimates, counted, strict=True)
        ]
    # Decisions that were played, of all rollouts, one after another.
    parts = zip(rollouts, estimates, selected, before, strict=True)
    samples = [
        _samples(rollout, algorithm, e, slots, _order(number, rollout, first))
        for number, (rollout, e, slots, first) in enumerate(parts)
    ]
    return Samples.cat(samples)


def join_moments(own: Sequence[Moments], ranks: Ranks) -> list[Moments]:
    """Moments over all ranks, from this rank's own moments of several tensors."""
    each = ranks.gather(torch.stack([moments.numbers() for moments in own]))
    dtype = own[0].mean.dtype
    return [reduce(Moments.__add__, (Moments(*part[i].to(dtype)) for part in each)) for i in range(len(own))]


def measure_shares(
    rollouts: Sequence[Rollout],
    samples: Samples,
    algorithm: OnPolicyConfig,
    dimension_mask: Tensor,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Which shares of all ranks' rollouts the policy learns from, as metrics: actions that were played, groups that are
    skipped, and dead tokens. A token is dead if it was not played, belongs to a skipped group or to a dimension that is
    not trained (`dimension_mask` [A], False), or has an advantage of 0.
    """
    # Where ranks played different numbers of decisions, there was room for as many in every slot.
    room = sum(int(sizes[:, 0].max() * sizes[:, 1].sum()) for sizes in _sizes(rollouts, ranks))
    actions = room * rollouts[0].valid.shape[2]
    advantages = samples.advantages if samples.advantages.dim() == 2 else samples.advantages[:, None]
    alive = samples.valid & samples.trained[:, None] & (advantages != 0)
    valid = sum(int(rollout.valid.sum()) for rollout in rollouts)
    counts = [count_groups(rollout, algorithm) for rollout in rollouts] if algorithm.group_size > 1 else []
    kept, groups = sum(count[0] for count in counts), sum(count[1] for count in counts)
    valid, tokens, kept, groups = ranks.sum(
        torch.tensor([valid, int(alive.sum() * dimension_mask.sum()), kept, groups])
    ).tolist()
    metrics = {
        "update/valid_share": valid / actions,
        "update/dead_token_share": 1 - tokens / (actions * len(dimension_mask)),
    }
    if groups:
        metrics["update/filtered_group_share"] = 1 - kept / groups
    return metrics


def measure_spread(samples: Samples, dimension_mask: Tensor, ranks: Ranks = ALONE) -> dict[str, float]:
    """The standard deviation of the log-probs of what was decided, over all ranks, as a metric: 0 for a policy that
    does not draw. `dimension_mask` [A] as for `measure_shares`.
    """
    positions, entries = samples.log_probs.shape[1:]
    # A joint log-prob is of all dimensions.
    mask = dimension_mask if len(dimension_mask) == entries else None
    counted = valid_entries(samples.valid, "token", (positions, entries), mask)
    (moments,) = join_moments([Moments.of(samples.log_probs, counted)], ranks)
    count = float(moments.count)
    return {"update/log_prob_std": math.sqrt(float(moments.deviations) / count)} if count else {}


def _sizes(rollouts: Sequence[Rollout], ranks: Ranks) -> list[Tensor]:
    """[ranks, 2] for each rollout: its decisions and its slots on each rank. Raises RankError."""
    each = ranks.gather(torch.tensor([rollout.valid.shape[:2] for rollout in rollouts]))
    for rank, sizes in enumerate(each):
        if len(sizes) != len(each[0]):
            raise RankError(
                f"rank 0 has {len(each[0])} rollouts and rank {rank} has {len(sizes)}: the parts of a batch belong "
                "together by rollout; collect as many on every rank"
            )
    return list(torch.stack(each, 1))


def _check_groups(rollouts: Sequence[Rollout], algorithm: OnPolicyConfig, ranks: Ranks) -> None:
    """Raises RankError if two ranks play the same scenario in one rollout."""
    lines = [f"{i} {scenario!r}" for i, rollout in enumerate(rollouts) for scenario in set(rollout.scenarios[0])]
    holders: dict[str, int] = {}
    for rank, text in enumerate(ranks.gather_text("\n".join(lines))):
        for line in text.splitlines():
            holder = holders.setdefault(line, rank)
            if holder != rank:
                raise RankError(
                    f"{line.partition(' ')[2]} is played on ranks {holder} and {rank}: the episodes of a group are "
                    f"compared within a rank; give each rank groups of algorithm.group_size {algorithm.group_size} "
                    "neighbouring slots, whole, and no scenario to two of them"
                )


def _order(number: int, rollout: Rollout, first: int) -> Tensor:
    """[T, B] for one rank's part of rollout `number`; its slots begin at `first` among all ranks' slots."""
    decisions, slots = rollout.valid.shape[:2]
    rows = number * _PLACES + torch.arange(decisions)[:, None]
    return rows * _PLACES + first + torch.arange(slots)


def _values(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
    """Values, final and next values as a `Rollout` has them; 0 without a critic."""
    found = rollout.values, rollout.final_values, rollout.next_values
    zeros = torch.zeros(*rollout.reward.shape[:2], 1)
    values, final, follows = (
        default if x is None else x for x, default in zip(found, (zeros, zeros[..., 0], zeros[0, :, 0]), strict=True)
    )
    return values, final, follows


def _timeline(rollout: Rollout, algorithm: OnPolicyConfig) -> Timeline:
    chunk = rollout.reward.shape[2]
    ended = rollout.terminated | rollout.truncated
    values, final_values, next_values = _values(rollout)
    follows = torch.where(ended, final_values[..., None], 0.0)
    scenarios = number_scenarios(rollout.scenarios)
    if algorithm.advantages_per_action:
        values = values.expand_as(rollout.reward)
        rewards, values, ended, follows = (flatten_actions(x) for x in (rollout.reward, values, ended, follows))
        valid, scenarios = flatten_actions(rollout.valid), scenarios.repeat_interleave(chunk, 0)
    else:
        rewards, ended, valid = reduce_to_chunk(rollout.reward, ended, rollout.valid)
        values, follows = values[..., 0], follows.sum(-1)
    return Timeline(
        rewards=rewards,
        values=values,
        ended=ended,
        bootstrap_values=follows,
        last_values=next_values,
        valid=valid,
        scenarios=scenarios,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
    )


def _samples(
    rollout: Rollout, algorithm: OnPolicyConfig, estimate: Estimate, selected: Tensor, order: Tensor
) -> Samples:
    """One rollout's decisions that were played, time-major."""
    steps, slots, chunk = rollout.reward.shape
    advantages = estimate.advantages
    returns = torch.zeros_like(advantages) if estimate.returns is None else estimate.returns
    if algorithm.advantages_per_action:
        advantages, returns = unflatten_actions(advantages, chunk), unflatten_actions(returns, chunk)
        if not algorithm.values_per_action:
            played = rollout.valid.sum(-1, keepdim=True).clamp(min=1)
            returns = torch.where(rollout.valid, returns, 0).sum(-1, keepdim=True) / played
    else:
        returns = returns[..., None]
    columns = (
        rollout.state,
        rollout.choices,
        rollout.log_probs,
        _values(rollout)[0],
        returns,
        advantages,
        rollout.valid,
        rollout.versions,
        episode_lengths(rollout.terminated | rollout.truncated, rollout.valid),
        selected.expand(steps, slots),
        order,
    )
    inputs = rollout.inputs.of({name: x.flatten(0, 1) for name, x in rollout.inputs.tensors().items()})
    samples = Samples(inputs, *(x.flatten(0, 1) for x in columns))
    return samples.take(samples.valid.any(-1))
