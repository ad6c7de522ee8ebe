"""Seconds of one GRPO update: with everything masked, with skipping, and with a share of the chunks besides."""

import copy
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from treadle.config.loading import load_recipe, resolve_checkpoint
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.files import to_json, write_atomically
from treadle.policies import load_policy
from treadle.policies.critic import NoCritic
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.machine import describe_machine
from treadle.rollout.collector import Collector
from treadle.training.critic_fit import CriticFit
from treadle.training.passes import Anchors, PolicyPasses
from treadle.training.run import open_lanes
from treadle.training.samples import Samples, estimate_advantages

FILTER = ("algorithm.filter.low=0.1", "algorithm.filter.high=0.9")
"""Groups that are skipped."""
SHARES = (1.0, 0.5, 0.2)
"""Shares of chunks that are propagated back."""


def run(json: Path | None, overrides: Sequence[str], rounds: int = 3) -> list[dict[str, Any]]:
    """Measure on one rollout of the recipe `quickstart-grpo`, with groups filtered to `FILTER`; print a table and write
    JSON where asked.
    """
    config = load_recipe("quickstart-grpo", [*FILTER, *overrides])
    policy = load_policy(resolve_checkpoint(config.policy.checkpoint), device="cpu")
    rollout = _collect(config, policy)
    algorithm = config.algorithm
    every = estimate_advantages([rollout], algorithm)
    masked = copy.copy(every)
    masked.valid = every.valid & every.trained[:, None]
    kept = every.take(every.trained)
    total = rollout.reward.shape[0] * rollout.reward.shape[1]
    cases = [("masked", masked, 1.0), *((f"skipped, {share:.0%} of chunks", kept, share) for share in SHARES)]
    rows: list[dict[str, Any]] = []
    times: dict[str, list[float]] = {name: [] for name, _, _ in cases}
    for turn in range(rounds + 1):
        # Cases take turns, so that the machine's moods meet all of them; the first turn warms up.
        for name, samples, share in cases:
            seconds = _seconds(config, policy, samples, share)
            if turn:
                times[name].append(seconds)
    slowest = statistics.median(times["masked"])
    for name, samples, share in cases:
        seconds = statistics.median(times[name])
        rows.append(
            {
                "update": name,
                "decisions": len(samples),
                "passed": sum(max(1, round(share * len(x))) for x in _minibatches(config, samples)),
                "seconds": seconds,
                "saved": 1 - seconds / slowest,
            }
        )
    Console().print(_table(rows))
    if json is not None:
        result = {
            "benchmark": "update",
            "command": shlex.join(["treadle", *sys.argv[1:]]),
            "machine": describe_machine(),
            "slots": config.simulator.slots,
            "decisions_of_the_rollout": total,
            "rounds": rounds,
            "measurements": rows,
        }
        write_atomically(json, to_json(result) + "\n")
    return rows


def _collect(config: TrainConfig, policy: Policy) -> Rollout:
    sampling = Sampling(**config.policy.sampling.model_dump())
    with open_lanes(config, policy) as lanes:
        collector = Collector(lanes, policy, sampling, NoCritic(), encode=config.policy.freeze_vision)
        return collector.collect(config.decisions, version=0)


def _minibatches(config: TrainConfig, samples: Samples) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randperm(len(samples), generator=generator).split(config.algorithm.minibatch)


def _seconds(config: TrainConfig, policy: Policy, samples: Samples, share: float) -> float:
    """Of one epoch's gradients; the policy is left as it was."""
    algorithm = config.algorithm.model_copy(update={"chunk_share": share})
    config = config.model_copy(update={"algorithm": algorithm})
    parameters = policy.freeze(vision=config.policy.freeze_vision)["policy"]
    dimensions = torch.ones(policy.action_dim, dtype=torch.bool)
    passes = PolicyPasses(policy, CriticFit(NoCritic(), config, policy.device), config, dimensions, policy.device)
    weights = samples.weights()
    start = time.perf_counter()
    for rows in _minibatches(config, samples):
        passes.accumulate(samples, weights, Anchors(), rows, 0)
        for parameter in parameters:
            parameter.grad = None
    return time.perf_counter() - start


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="one epoch of updates", title_justify="left")
    for column in ("update", "decisions", "passed", "seconds", "time saved"):
        table.add_column(column, justify="left" if column == "update" else "right")
    for row in rows:
        table.add_row(
            row["update"], str(row["decisions"]), str(row["passed"]), f"{row['seconds']:.2f}", f"{row['saved']:.0%}"
        )
    return table
