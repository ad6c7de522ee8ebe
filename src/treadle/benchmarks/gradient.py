"""How much of a policy gradient is signal: what the gradients of independent rollouts have in common."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from treadle.config.loading import load_recipe, resolve_checkpoint
from treadle.config.schema import TrainConfig
from treadle.devices import choose_device, prepare_cpu
from treadle.errors import ConfigError
from treadle.files import to_json, write_atomically
from treadle.policies.protocol import Sampling
from treadle.reporting.machine import describe_machine
from treadle.rollout.collector import Collector
from treadle.training.finetuning import load_trainable
from treadle.training.learner import Learner
from treadle.training.run import build_critic, load_reference, open_lanes

CRITIC_ROLLOUTS = 6
"""What a critic is fitted to before anything is measured."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One row of the table."""

    settings: str
    share: float
    standard_error: float
    norm: float
    """Root mean square of the gradients' norms."""


def run(
    recipe: str, json: Path | None, overrides: Sequence[str], variants: Sequence[str] = (), batches: int = 8
) -> list[Signal]:
    """Measure a recipe, and variants of it on the same rollouts, each a string of further overrides.

    Keeps all gradients in memory: batches x variants x 4 bytes for each trained parameter.

    Raises:
        ConfigError: Fewer than 3 batches; a variant that would collect other rollouts; as `train`.
    """
    if batches < 3:
        raise ConfigError(
            f"--batches: found {batches}, allowed is 3 or more: the error is estimated from leaving one out"
        )
    names = ["as the recipe", *variants]
    cases = [load_recipe(recipe, [*overrides, *shlex.split(variant)]) for variant in ["", *variants]]
    for name, case in zip(names, cases, strict=True):
        _check_collects_the_same(name, cases[0], case)
    gradients = _measure(cases, batches)
    found = [
        Signal(name, *signal_share(rows), float(rows.square().sum(1).mean().sqrt()))
        for name, rows in zip(names, gradients, strict=True)
    ]
    Console().print(_table(recipe, found))
    if json is not None:
        result = {
            "benchmark": "gradient",
            "command": shlex.join(["treadle", *sys.argv[1:]]),
            "machine": describe_machine(),
            "recipe": recipe,
            "overrides": list(overrides),
            "batches": batches,
            "measurements": [asdict(signal) for signal in found],
        }
        write_atomically(json, to_json(result) + "\n")
    return found


def signal_share(gradients: Tensor) -> tuple[float, float]:
    """`|E g|^2 / E |g|^2` of independent gradients [N, P], and its standard error by the jackknife (Efron 1982).

    |E g|^2 is the mean product of two different ones, which noise leaves unbiased. The share is about the cosine
    between two gradients of this size: 1 without noise, 0 where there is nothing to learn from.
    """
    products = (gradients @ gradients.T).double()
    count = len(products)

    def share(kept: Tensor) -> Tensor:
        part = products[kept][:, kept]
        square = part.diagonal()
        common = (part.sum() - square.sum()) / (len(part) * (len(part) - 1))
        return common / square.mean().clamp(min=1e-30)

    every = torch.arange(count)
    without = torch.stack([share(every[every != left_out]) for left_out in range(count)])
    variance = (count - 1) / count * (without - without.mean()).square().sum()
    return float(share(every)), float(variance.sqrt())


def _check_collects_the_same(name: str, base: TrainConfig, case: TrainConfig) -> None:
    """Raises ConfigError where a variant's rollouts would not be the base's."""

    def collected(config: TrainConfig) -> dict[str, Any]:
        sections = config.model_dump(exclude={"algorithm", "optimizer", "name"})
        shaping = ("partial_reset", "group_size", "rounds", "bootstrap", "values_per_action")
        return sections | {f"algorithm.{key}": getattr(config.algorithm, key) for key in shaping}

    ours, theirs = collected(base), collected(case)
    for key, value in theirs.items():
        if value != ours[key]:
            raise ConfigError(
                f"--against {name!r}: {key} is {value} there and {ours[key]} in the recipe; variants are compared on "
                "the same rollouts, so only what an update makes of them may differ"
            )


def _measure(cases: Sequence[TrainConfig], batches: int) -> list[Tensor]:
    """[batches, P] for each case."""
    # A critic is there if one of them reads it.
    config = next((case for case in cases if case.has_critic), cases[0])
    prepare_cpu(config.torch_threads)
    device, base = choose_device(config.device), resolve_checkpoint(config.policy.checkpoint)
    torch.manual_seed(config.seed)
    policy = load_trainable(base, config.policy, device, freeze_vision=config.policy.freeze_vision)
    warmup = CRITIC_ROLLOUTS if config.has_critic else 0
    with open_lanes(config, policy) as lanes:
        critic = build_critic(config, policy, lanes.spec.state_dim, device)
        sampling = Sampling(**config.policy.sampling.model_dump())
        collector = Collector(lanes, policy, sampling, critic, encode=config.policy.freeze_vision)
        if warmup:
            fitting = config.critic.model_copy(update={"warmup_iterations": warmup})
            learner = Learner(policy, critic, config.model_copy(update={"critic": fitting}), device)
            for i in range(warmup):
                learner.update([collector.collect(config.decisions, version=i)], i)
        # The loss of a head would be a gradient of the policy's too.
        alone = {"critic": config.critic.model_copy(update={"coefficient": 0.0})}
        learners = [
            Learner(policy, critic, case.model_copy(update=alone), device, load_reference(case, base, device))
            for case in cases
        ]
        found: list[list[Tensor]] = [[] for _ in cases]
        for i in range(warmup, warmup + batches):
            rollouts = [collector.collect(config.decisions, version=i) for _ in range(config.algorithm.rounds)]
            for learner, rows in zip(learners, found, strict=True):
                rows.append(learner.gradient(rollouts, i))
    return [torch.stack(rows) for rows in found]


def _table(recipe: str, found: Sequence[Signal]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"signal in the policy gradient of {recipe}", title_justify="left")
    table.add_column("settings")
    for column in ("share of signal", "standard error", "norm"):
        table.add_column(column, justify="right")
    for signal in found:
        table.add_row(signal.settings, f"{signal.share:.2%}", f"{signal.standard_error:.2%}", f"{signal.norm:.3g}")
    return table
