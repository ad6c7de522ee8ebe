"""From rollouts to what an update reads: advantages, which decisions are worth a gradient, and their weights.

Shapes: T decisions per slot, B slots, N decisions of all rollouts, C actions of a chunk, K action tokens, V values per
decision, S privileged state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.algorithms.advantages import Moments, normalize
from treadle.algorithms.estimators import ESTIMATORS, Estimate, Estimator, Timeline
from treadle.algorithms.groups import varied_groups
from treadle.algorithms.masks import (
    episode_lengths,
    flatten_actions,
    reduce_to_chunk,
    trajectory_totals,
    trajectory_weights,
    unflatten_actions,
)
from treadle.config.algorithm import GROUP_ESTIMATORS, AlgorithmConfig
from treadle.data.rollout import Rollout
from treadle.data.scenario import Scenario
from treadle.errors import RankError
from treadle.plugins import import_callable
from treadle.policies.protocol import Inputs
from treadle.training.ranks import ALONE, Ranks

_PLACES = 2**21
"""More than the rollouts, decisions or slots of an update; three such digits fill an int64."""


@dataclass(slots=True)
class Samples:
    """Decisions of rollouts that were played, with what the algorithm made of them."""

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
    versions: Tensor
    """[N] of the policy that acted."""
    lengths: Tensor
    """[N] valid actions of the decision's episode."""
    trained: Tensor
    """[N] bool, gives the policy a gradient; the others are of groups that are skipped."""
    order: Tensor
    """[N] int64, grows with rollout, decision and slot, counted over all ranks: the same for any number of ranks."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor) -> "Samples":
        """The given rows, as indices or as a mask."""
        if rows.dtype == torch.bool and bool(rows.all()):
            return self
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "inputs"}
        return Samples(self.inputs.take(rows), **{name: x[rows] for name, x in tensors.items()})

    @staticmethod
    def cat(parts: "Sequence[Samples]") -> "Samples":
        """All parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        names = [field.name for field in fields(Samples) if field.name != "inputs"]
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return Samples(Inputs.cat([part.inputs for part in parts]), **tensors)

    def weights(self, ranks: Ranks = ALONE) -> Tensor:
        """[N] under which every episode counts the same, however long and on whichever rank."""
        return trajectory_weights(self.lengths, self.valid, ranks.sum(trajectory_totals(self.lengths, self.valid)))


def find_estimator(name: str) -> Estimator:
    """The estimator that a recipe names. Raises ConfigError."""
    return import_callable("algorithm.estimator", name, "function") if ":" in name else ESTIMATORS[name]


def estimate_advantages(
    rollouts: Sequence[Rollout],
    algorithm: AlgorithmConfig,
    estimator: Estimator | None = None,
    ranks: Ranks = ALONE,
) -> Samples:
    """Advantages at the configured level, normalised over all that the rollouts of all ranks hold of worth for a
    gradient. An estimator sees a rollout of one rank, so groups are whole in it.

    Raises:
        RankError: A group is divided among ranks, or ranks have different numbers of rollouts.
    """
    if algorithm.group_size > 1:
        _check_groups(rollouts, algorithm, ranks)
    before = [int(sizes[: ranks.rank, 1].sum()) for sizes in _sizes(rollouts, ranks)]
    estimate = estimator or find_estimator(algorithm.estimator)
    timelines = [_timeline(rollout, algorithm) for rollout in rollouts]
    estimates = [estimate(timeline) for timeline in timelines]
    selected = [select_slots(rollout, algorithm) for rollout in rollouts]
    if algorithm.normalize_advantages:
        counted = [timeline.valid & slots for timeline, slots in zip(timelines, selected, strict=True)]
        moments = [Moments.of(e.advantages, count) for e, count in zip(estimates, counted, strict=True)]
        (whole,) = join_moments([reduce(Moments.__add__, moments)], ranks)
        estimates = [
            replace(e, advantages=normalize(e.advantages, count, moments=whole))
            for e, count in zip(estimates, counted, strict=True)
        ]
    parts = zip(rollouts, estimates, selected, before, strict=True)
    samples = [
        _samples(rollout, algorithm, e, slots, _order(number, rollout, first))
        for number, (rollout, e, slots, first) in enumerate(parts)
    ]
    return Samples.cat(samples)


def join_moments(own: Sequence[Moments], ranks: Ranks) -> list[Moments]:
    """Moments over all ranks of several things of which this rank has its own."""
    each = ranks.gather(torch.stack([moments.numbers() for moments in own]))
    dtype = own[0].mean.dtype
    return [reduce(Moments.__add__, (Moments(*part[i].to(dtype)) for part in each)) for i in range(len(own))]


def select_slots(rollout: Rollout, algorithm: AlgorithmConfig) -> Tensor:
    """[B] bool: slots whose group gives a gradient, by its success rate and, where the estimator compares the episodes
    of a group, by whether their scores differ.
    """
    slots = rollout.reward.shape[1]
    if algorithm.group_size == 1:
        return torch.ones(slots, dtype=torch.bool)
    outcomes: dict[Scenario, list[bool]] = {}
    for episode in rollout.episodes:
        outcomes.setdefault(episode.scenario, []).append(episode.success_once)
    rates = {scenario: sum(found) / len(found) for scenario, found in outcomes.items()}
    limits = algorithm.filter
    selected = torch.tensor([limits.low <= rates[scenario] <= limits.high for scenario in rollout.scenarios[0]])
    if algorithm.estimator in GROUP_ESTIMATORS:
        scores = torch.where(rollout.valid, rollout.reward, 0).sum((0, 2))
        selected &= varied_groups(scores, number_scenarios(rollout.scenarios[0]))
    return selected


def number_scenarios(scenarios: NDArray[np.object_]) -> Tensor:
    """int64 of the same shape, equal where scenarios are (in all that makes them up), -1 where there is none."""
    numbers: dict[Scenario | None, int] = {None: -1}
    each: list[Scenario | None] = scenarios.ravel().tolist()
    flat = [numbers.setdefault(scenario, len(numbers) - 1) for scenario in each]
    return torch.tensor(flat).reshape(scenarios.shape)


def count_groups(rollout: Rollout, algorithm: AlgorithmConfig) -> tuple[int, int]:
    """How many groups a rollout has that give a gradient, and how many in all."""
    selected = select_slots(rollout, algorithm).numpy()
    scenarios = rollout.scenarios[0]
    return len(set(scenarios[selected])), len(set(scenarios))


def measure_shares(
    rollouts: Sequence[Rollout],
    samples: Samples,
    algorithm: AlgorithmConfig,
    dimension_mask: Tensor,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """What of all ranks' rollouts is of use to the policy, as metrics: actions that were played, groups that are
    skipped, and tokens that can have no gradient since they were not played, are of a skipped group or a dimension that
    is not trained (`dimension_mask` [A], False), or have an advantage of 0.
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


def _sizes(rollouts: Sequence[Rollout], ranks: Ranks) -> list[Tensor]:
    """[ranks, 2] of each rollout: how many decisions it has on each rank, and how many slots. Raises RankError."""
    each = ranks.gather(torch.tensor([rollout.valid.shape[:2] for rollout in rollouts]))
    for rank, sizes in enumerate(each):
        if len(sizes) != len(each[0]):
            raise RankError(
                f"rank 0 has {len(each[0])} rollouts and rank {rank} has {len(sizes)}: the parts of a batch belong "
                "together by rollout; collect as many on every rank"
            )
    return list(torch.stack(each, 1))


def _check_groups(rollouts: Sequence[Rollout], algorithm: AlgorithmConfig, ranks: Ranks) -> None:
    """Raises RankError where two ranks play a scenario in one rollout."""
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
    """[T, B] of one rank's part of rollout `number`, whose slots are `first` and on of all ranks' slots."""
    decisions, slots = rollout.valid.shape[:2]
    rows = number * _PLACES + torch.arange(decisions)[:, None]
    return rows * _PLACES + first + torch.arange(slots)


def _timeline(rollout: Rollout, algorithm: AlgorithmConfig) -> Timeline:
    chunk = rollout.reward.shape[2]
    ended = rollout.terminated | rollout.truncated
    follows = torch.where(ended, rollout.final_values[..., None], 0.0)
    scenarios = number_scenarios(rollout.scenarios)
    if algorithm.advantages_per_action:
        values = rollout.values.expand_as(rollout.reward)
        rewards, values, ended, follows = (flatten_actions(x) for x in (rollout.reward, values, ended, follows))
        valid, scenarios = flatten_actions(rollout.valid), scenarios.repeat_interleave(chunk, 0)
    else:
        view = reduce_to_chunk(rollout.reward, ended, rollout.valid)
        rewards, ended, valid = view.rewards, view.ended, view.valid
        values, follows = rollout.values[..., 0], follows.sum(-1)
    return Timeline(
        rewards=rewards,
        values=values,
        ended=ended,
        bootstrap_values=follows,
        last_values=rollout.next_values,
        valid=valid,
        scenarios=scenarios,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
    )


def _samples(
    rollout: Rollout, algorithm: AlgorithmConfig, estimate: Estimate, selected: Tensor, order: Tensor
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
        rollout.tokens,
        rollout.log_probs,
        rollout.values,
        returns,
        advantages,
        rollout.valid,
        rollout.versions,
        episode_lengths(rollout.terminated | rollout.truncated, rollout.valid),
        selected.expand(steps, slots),
        order,
    )
    samples = Samples(Inputs.cat(rollout.inputs), *(x.flatten(0, 1) for x in columns))
    return samples.take(samples.valid.any(-1))
