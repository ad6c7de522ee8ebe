"""Seconds of one GRPO update: with everything masked, with skipping, and with a share of the chunks besides."""

import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gradient import on_policy, open_player
from benchmarks.output import make_table, write_record
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import load_recipe
from treadle.config.schema import TrainConfig
from treadle.policies import load_policy
from treadle.policies.protocol import Policy
from treadle.training.on_policy.batch import Batch, Samples, estimate_advantages
from treadle.training.on_policy.critic_fit import CriticFit
from treadle.training.on_policy.gradient import PolicyGradient

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
    with open_player(config, policy, policy.device) as (player, _):
        (rollout,) = player.collect(lambda rollouts: not rollouts)
    every = estimate_advantages([rollout], on_policy(config))
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
    write_record(
        json,
        "update",
        {
            "slots": config.simulator.slots,
            "decisions_of_the_rollout": total,
            "rounds": rounds,
            "measurements": rows,
        },
    )
    return rows


def _minibatches(config: TrainConfig, samples: Samples) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randperm(len(samples), generator=generator).split(on_policy(config).minibatch)


def _seconds(config: TrainConfig, policy: Policy, samples: Samples, share: float) -> float:
    """Of one epoch's gradients; the policy is left as it was."""
    algorithm = config.algorithm.model_copy(update={"chunk_share": share})
    config = config.model_copy(update={"algorithm": algorithm})
    parameters = policy.freeze(vision=config.policy.freeze_vision)["policy"]
    dimensions = torch.ones(policy.action_dim, dtype=torch.bool)
    critic = CriticFit(None, config, policy.device)
    gradient = PolicyGradient(policy, critic, config, dimensions, policy.device)
    batch = Batch(samples, samples, samples.weights())
    start = time.perf_counter()
    for rows in _minibatches(config, samples):
        gradient.accumulate(batch, rows, 0)
        for parameter in parameters:
            parameter.grad = None
    return time.perf_counter() - start


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = make_table("one epoch of updates", ["update"], ("decisions", "passed", "seconds", "time saved"))
    for row in rows:
        table.add_row(
            row["update"], str(row["decisions"]), str(row["passed"]), f"{row['seconds']:.2f}", f"{row['saved']:.0%}"
        )
    return table
