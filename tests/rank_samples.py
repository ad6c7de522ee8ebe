"""Ranks for tests: shards of a rollout, ranks as threads, and what a spawned rank does."""

import copy
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from treadle.algorithms.losses import PolicyBatch, PolicyMetrics, PolicyObjective, policy_loss
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.errors import TreadleError
from treadle.policies.critic import PrivilegedCritic
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.training.ranks import ALONE, ProcessRanks, Ranks
from treadle.training.sharding import ShardedRanks, shard_policy, whole
from treadle.training.shards import is_sharded
from update_samples import STATE, make_ppo

R = TypeVar("R")
TIMEOUT = 120.0


def shard(rollout: Rollout, slots: slice) -> Rollout:
    """What a rank that has these slots would have collected; without the decisions in which all of them idle."""
    decisions = int(rollout.valid[:, slots].any(-1).any(-1).sum())
    names = ("choices", "log_probs", "values", "state", "reward", "terminated", "truncated", "valid")
    names = (*names, "final_values", "final_states", "versions")
    scenarios = rollout.scenarios[:decisions, slots]
    return replace(
        rollout,
        inputs=rollout.inputs.of({name: x[:decisions, slots] for name, x in rollout.inputs.tensors().items()}),
        **{name: getattr(rollout, name)[:decisions, slots].clone() for name in names},
        next_values=rollout.next_values[slots],
        next_states=rollout.next_states[slots],
        scenarios=scenarios,
        selected=None,
        episodes=[episode for episode in rollout.episodes if episode.scenario in set(scenarios[0])],
    )


def shards(rollouts: Sequence[Rollout], sizes: Sequence[int]) -> list[list[Rollout]]:
    """Each rank's part of each rollout; rank r has sizes[r] neighbouring slots."""
    ends = [sum(sizes[: rank + 1]) for rank in range(len(sizes))]
    return [[shard(x, slice(end - size, end)) for x in rollouts] for end, size in zip(ends, sizes, strict=True)]


class ThreadRanks(Ranks):
    """One of several threads; for what needs no error and no gradient of another rank."""

    def __init__(self, rank: int, board: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank = rank
        self._board = board
        self._barrier = barrier

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._board[self.rank] = x
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found


def on_threads(count: int, work: Callable[[Ranks], R]) -> list[R]:
    """What `work` returns on each of so many ranks."""
    board, barrier = [torch.empty(0)] * count, threading.Barrier(count, timeout=60)
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, [ThreadRanks(rank, board, barrier) for rank in range(count)]))


@dataclass
class Case:
    """Updates, and what they begin with."""

    policy: PrismaticPolicy
    config: TrainConfig
    critic: str
    rollouts: list[Rollout]
    sizes: dict[int, tuple[int, ...]]
    """Slots of each rank, by number of ranks."""
    iterations: tuple[int, ...] = (3,)
    reference: PrismaticPolicy | None = None


@dataclass
class Result:
    """Of the updates of a case."""

    metrics: list[dict[str, float]]
    parameters: dict[str, Tensor]
    gradients: list[list[Tensor]]
    """Of each optimizer step."""
    coefficient: float


def make_critic(kind: str) -> PrivilegedCritic | None:
    torch.manual_seed(7)
    return PrivilegedCritic(STATE, 2, 8) if kind == "privileged" else None


def play(case: Case, rollouts: Sequence[Rollout], ranks: Ranks = ALONE) -> Result:
    """The updates of a case, from rollouts or this rank's parts of them; sharded if the ranks are."""
    policy, reference = copy.deepcopy(case.policy), copy.deepcopy(case.reference)
    critic = make_critic(case.critic)
    if isinstance(ranks, ShardedRanks):
        for each in (policy, reference):
            if each is not None:
                shard_policy(each, ranks, torch.device("cpu"))
    ppo = make_ppo(policy, case.config, critic, reference, ranks)
    gradients: list[list[Tensor]] = []

    def keep(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    ppo.optimizer.register_step_pre_hook(keep)
    metrics = [ppo.update(rollouts, iteration) for iteration in case.iterations]
    given = [p for _, p in ppo._named_parameters()]
    gradients = [
        [torch.cat(ranks.gather(x)) if is_sharded(p) else x for x, p in zip(step, given, strict=True)]
        for step in gradients
    ]
    parameters = {name: whole(p, ranks).clone() for name, p in ppo._named_parameters()}
    return Result(metrics, parameters, gradients, ppo.state_dict()["reference_coefficient"])


def assert_same_metrics(found: list[dict[str, float]], wanted: list[dict[str, float]], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in (name for name in other if not name.startswith("time/")):
            # Rounding moves a single weight or not.
            least = 10 * tolerance if name == "update/unmoved_share" else 0.1 * tolerance
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=least), name


def assert_same_update(ranks: list[Result], alone: Result) -> None:
    for result in ranks:
        assert len(result.gradients) == len(alone.gradients) > 1
        for step, wanted in zip(result.gradients, alone.gradients, strict=True):
            size = max(float(x.abs().max()) for x in wanted)
            assert size > 1e-3
            for one, other in zip(step, wanted, strict=True):
                assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * size)
        for name, parameter in alone.parameters.items():
            # A step is 1e-4; where a gradient is all but 0, Adam makes a share of one from rounding.
            gap = (result.parameters[name] - parameter).abs()
            assert gap.max() <= 1e-5, f"{name}: {gap.max():.2g}"
        assert result.coefficient == pytest.approx(alone.coefficient)
        assert_same_metrics(result.metrics, alone.metrics, 1e-4)
        assert_same_metrics(result.metrics, ranks[0].metrics, 0.0)
        assert all(torch.equal(x, ranks[0].parameters[name]) for name, x in result.parameters.items())


def play_cases(cases: dict[str, Case], ranks: ProcessRanks, count: int) -> dict[str, Result]:
    """Every case, of which this rank has its part."""
    return {
        name: play(case, shards(case.rollouts, case.sizes[count])[ranks.rank], ranks) for name, case in cases.items()
    }


def spoilt(batch: PolicyBatch, objective: PolicyObjective, total: Tensor) -> tuple[Tensor, PolicyMetrics]:
    """A loss that is NaN on rank 2."""
    loss, metrics = policy_loss(batch, objective, total)
    return loss * (math.nan if dist.get_rank() == 2 else 1), metrics


def steep(batch: PolicyBatch, objective: PolicyObjective, total: Tensor) -> tuple[Tensor, PolicyMetrics]:
    """A loss that is finite, and has a gradient that is not on rank 2."""
    loss, metrics = policy_loss(batch, objective, total)
    return loss + ((batch.log_probs * 0).sum().sqrt() if dist.get_rank() == 2 else 0), metrics


def with_loss(case: Case, name: str) -> Case:
    algorithm = case.config.algorithm.model_copy(update={"loss": f"rank_samples:{name}"})
    return replace(case, config=case.config.model_copy(update={"algorithm": algorithm}))


def complaint(work: Callable[[], object]) -> str:
    """The error that work raises, with its class."""
    try:
        work()
    except TreadleError as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def complaints(case: Case, group_case: Case, ranks: ProcessRanks, count: int) -> dict[str, str]:
    """What each kind of fault that one rank has makes of an update, on this rank."""
    last = ranks.rank == count - 1
    parts = shards(case.rollouts, case.sizes[count])[ranks.rank]
    broken = copy.deepcopy(parts)
    if last:
        broken[0].reward[0, 0, 0] = float("nan")
    moved = replace(case, policy=copy.deepcopy(case.policy))
    if last:
        moved.policy.language_model.lm_head.weight.data[0, 0] += 1e-6
    slots = group_case.rollouts[0].valid.shape[1]
    cut = shards(group_case.rollouts, [*[1] * (count - 1), slots - count + 1])[ranks.rank]
    return {
        "loss": complaint(lambda: play(with_loss(case, "spoilt"), parts, ranks)),
        "gradient": complaint(lambda: play(with_loss(case, "steep"), parts, ranks)),
        "nan": complaint(lambda: play(case, broken, ranks)),
        "rollouts": complaint(lambda: play(case, parts * 2 if last else parts, ranks)),
        "parameters": complaint(lambda: play(moved, parts, ranks)),
        "group": complaint(lambda: play(group_case, cut, ranks)),
    }


def absence(timeout: float, ranks: Iterable[int]) -> str:
    """What a rank says that waits for one that does not come."""
    waiting = ProcessRanks(timeout)
    dist.barrier()
    message = complaint(lambda: waiting.sum(torch.ones(2))) if waiting.rank in ranks else ""
    dist.barrier()
    return message


def run_rank(rank: int, count: int, folder: Path) -> None:
    """A spawned rank: the cases by all ranks and by the first two, then all faults. Writes what it finds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    cases: dict[str, Case] = torch.load(folder / "cases.pt", weights_only=False)
    everyone = ProcessRanks(TIMEOUT)
    found: dict[str, Any] = {"all": play_cases(cases, everyone, count)}
    two = dist.new_group([0, 1], backend="gloo")
    if rank < 2:
        assert isinstance(two, dist.ProcessGroup)
        found["two"] = play_cases(cases, ProcessRanks(TIMEOUT, two), 2)
    found["faults"] = complaints(cases["value head"], cases["groups"], everyone, count)
    found["absence"] = absence(2.0, range(count - 1))
    torch.save(found, folder / f"found-{rank}.pt")
    dist.destroy_process_group()
