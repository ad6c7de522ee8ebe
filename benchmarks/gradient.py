"""How much of a policy gradient is signal: what the gradients of independent rollouts have in common."""

import shlex
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.output import make_table, write_record
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.loading import load_recipe
from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.devices import choose_device, prepare_cpu
from treadle.errors import ConfigError
from treadle.policies.critic import PrivilegedCritic
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy
from treadle.runtime.member import build_critic
from treadle.runtime.player import Player
from treadle.training.algorithm import Training
from treadle.training.finetuning import load_trainable
from treadle.training.on_policy.ppo import PPO
from treadle.workers.crew import Crew, check_dimensions
from treadle.workers.plan import plan_crew

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
    cosine: float | None
    """With the recipe's gradient as it would be without noise; none where noise hides that."""
    cosine_error: float | None
    """Its standard error."""


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
        Signal(name, *signal_share(rows), float(rows.square().sum(1).mean().sqrt()), *cosine(rows, gradients[0]))
        for name, rows in zip(names, gradients, strict=True)
    ]
    Console().print(_table(recipe, found))
    write_record(
        json,
        "gradient",
        {
            "recipe": recipe,
            "overrides": list(overrides),
            "batches": batches,
            "measurements": [asdict(signal) for signal in found],
        },
    )
    return found


def signal_share(gradients: Tensor) -> tuple[float, float]:
    """`|E g|^2 / E |g|^2` of independent gradients [N, P], and its standard error by the jackknife.

    The share is about the cosine between two gradients of this size: 1 without noise, 0 where there is nothing to learn
    from.
    """
    products = (gradients @ gradients.T).double()
    return _jackknife(len(products), lambda kept: _common(products, kept) / _square(products, kept))


def cosine(gradients: Tensor, reference: Tensor) -> tuple[float, float] | tuple[None, None]:
    """The cosine between one of independent gradients [N, P] and the expectation of others [N, P] of the same N
    rollouts, and its standard error by the jackknife; none where noise hides the expectation.

    Where the reference is unbiased, this is what a step along a gradient is worth: a large share of signal may be that
    of a bias, and points elsewhere.
    """
    own, across, theirs = ((a @ b.T).double() for a, b in ((gradients,) * 2, (gradients, reference), (reference,) * 2))

    def found(kept: Tensor) -> Tensor:
        # The root of a negative number is NaN.
        return _common(across, kept) / _common(theirs, kept).sqrt() / _square(own, kept).sqrt()

    value, error = _jackknife(len(own), found)
    return (value, error) if isfinite(value) and isfinite(error) else (None, None)


def _common(products: Tensor, kept: Tensor) -> Tensor:
    """The mean product of two different rollouts, which noise leaves unbiased."""
    part = products[kept][:, kept]
    return (part.sum() - part.diagonal().sum()) / (len(part) * (len(part) - 1))


def _square(products: Tensor, kept: Tensor) -> Tensor:
    return products[kept, kept].mean().clamp(min=1e-30)


def _jackknife(count: int, estimate: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """An estimate from rows, and its standard error from leaving each out in turn (Efron 1982)."""
    every = torch.arange(count)
    without = torch.stack([estimate(every[every != left_out]) for left_out in range(count)])
    variance = (count - 1) / count * (without - without.mean()).square().sum()
    return float(estimate(every)), float(variance.sqrt())


def one_step(config: TrainConfig) -> TrainConfig:
    """The run with one unclipped step of the policy an iteration, over all that was collected for it."""
    reference = on_policy(config).reference.model_copy(update={"target": None})
    changes = {
        "algorithm": {"epochs": 1, "minibatch": sys.maxsize, "reference": reference},
        # The loss of a value head would be a gradient of the policy's too.
        "critic": {"coefficient": 0.0, "warmup_iterations": 0},
        "optimizer": {"gradient_norm": 1e30},
    }
    return config.model_copy(update={k: getattr(config, k).model_copy(update=v) for k, v in changes.items()})


def on_policy(config: TrainConfig) -> OnPolicyConfig:
    """The algorithm's settings. Raises ConfigError where it is of another kind."""
    if not isinstance(config.algorithm, OnPolicyConfig):
        raise ConfigError(f"algorithm.kind: found {config.algorithm.kind!r}; allowed are on-policy ones: ppo, grpo")
    return config.algorithm


@contextmanager
def open_player(
    config: TrainConfig, policy: Policy, device: torch.device
) -> Generator[tuple[Player, PrivilegedCritic | None], None, None]:
    """What collects rollouts as training does, and the network that values them."""
    with Crew(plan_crew(config.simulator, config.collection, accelerated=device.type != "cpu")) as crew:
        check_dimensions(crew, policy.action_dim)
        critic = build_critic(config, policy, crew.spec.state_dim, device)
        yield Player(config, crew, policy), critic


def gradient(algorithm: PPO, rollouts: Sequence[Rollout], iteration: int) -> Tensor:
    """[P] on the CPU: the gradient of the last step that an update would make; 0 where it trains nothing of the
    policy. Changes nothing: the optimizer's steps are not made.
    """
    parts = [torch.zeros(p.numel()) for p in algorithm.trained]

    def note() -> None:
        if any(parameter.grad is not None for parameter in algorithm.trained):
            parts[:] = [
                torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().float().cpu() for p in algorithm.trained
            ]

    with patch.object(algorithm.optimizer, "step", note):
        algorithm.update(rollouts, iteration)
    return torch.cat(parts)


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
    with open_player(config, policy, device) as (player, critic):

        def algorithm(case: TrainConfig) -> PPO:
            def load_reference() -> Policy:
                return load_configured(base, case.policy, device=str(device)).eval()

            return PPO(Training(policy, critic, case, device, load_reference))

        def collect(version: int, count: int) -> list[Rollout]:
            player.version = version
            return player.collect(lambda rollouts: len(rollouts) < count)

        if warmup:
            fitting = config.critic.model_copy(update={"warmup_iterations": warmup})
            fitted = algorithm(config.model_copy(update={"critic": fitting}))
            for i in range(warmup):
                fitted.update(collect(i, 1), i)
        algorithms = [algorithm(one_step(case)) for case in cases]
        found: list[list[Tensor]] = [[] for _ in cases]
        for i in range(warmup, warmup + batches):
            rollouts = collect(i, on_policy(config).rounds)
            for case, rows in zip(algorithms, found, strict=True):
                rows.append(gradient(case, rollouts, i))
    return [torch.stack(rows) for rows in found]


def _table(recipe: str, found: Sequence[Signal]) -> Table:
    columns = ("share of signal", "norm", "cosine")
    table = make_table(f"signal in the policy gradient of {recipe}", ["settings"], columns)
    for signal in found:
        share = f"{signal.share:.1%} +- {signal.standard_error:.1%}"
        along = "-" if signal.cosine is None else f"{signal.cosine:.2f} +- {signal.cosine_error:.2f}"
        table.add_row(signal.settings, share, f"{signal.norm:.3g}", along)
    return table
