"""Treadle from Python: what the commands do, as functions. Names and settings are those of the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.describe import toml_text
from treadle.config.loading import load_recipe, read_config
from treadle.config.protocols import EvalConfig, find_protocol
from treadle.config.supervised import SupervisedConfig

if TYPE_CHECKING:
    from treadle.policies.protocol import Policy

Settings = Mapping[str, Any]
"""Settings by their dotted names, as `{"optimizer.learning_rate": 1e-4}`."""


def train(recipe: str | Path, settings: Settings | None = None) -> Path:
    """Fine-tune a policy with reinforcement learning, as `treadle train`; the same call resumes a run.

    Args:
        recipe: a name that `treadle recipes` lists, or a `.toml` file.
        settings: what differs from it.

    Returns:
        The run's folder, with `report.html`, `policy` and `summary.json`.

    Raises:
        TreadleError: A mistake that the user can mend.
        KeyboardInterrupt: The user stopped it; it is saved.
    """
    from treadle.runtime import loop

    return loop.train(load_recipe(str(recipe), _overrides(settings)))


def sft(recipe: str | Path, settings: Settings | None = None) -> Path:
    """Train a policy on demonstrations, as `treadle sft`. Arguments and errors are those of `train`.

    Returns:
        The run's folder, with `policy` in it.
    """
    from treadle.supervised.train import train_supervised

    return train_supervised(load_recipe(str(recipe), _overrides(settings), SupervisedConfig))


def evaluate(
    checkpoint: str | Path,
    settings: Settings | None = None,
    *,
    protocol: str | None = None,
    output: str | Path = "evaluations",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the success of a checkpoint on enumerated scenarios, as `treadle eval`; the same call resumes.

    Args:
        checkpoint: a packaged name, a folder, a run, or an id of the Hugging Face hub that its cache has.
        settings: of the sections `simulator`, `collection`, `evaluation`, and of `policy` how it is loaded.
        protocol: a name that `treadle protocols` lists, or a `.toml` file; `settings` change it.
        output: the folder that keeps episodes.
        device: "auto", "cpu", "cuda", "cuda:1".

    Returns:
        `suites`, each with `success`, `ci95`, `episodes` and its settings and tasks; `manifest`; `folder`.

    Raises:
        TreadleError: A mistake that the user can mend.
    """
    from treadle.evaluation.evaluate import evaluate_checkpoint

    found = None if protocol is None else find_protocol(protocol)
    overrides = _overrides(settings)
    config = read_config(EvalConfig, None, overrides) if found is None else found.config(overrides)
    return evaluate_checkpoint(
        resolve_checkpoint(str(checkpoint)),
        config.policy,
        config.simulator,
        config.evaluation,
        device,
        collection=config.collection,
        output=Path(output),
        protocol=None if found is None else found.name,
    )


def load_policy(checkpoint: str | Path, **options: Any) -> "Policy":
    """A policy that acts and can be trained, from what `evaluate` takes as a checkpoint; `options` are those of
    `treadle.policies.load_policy`: device, dtype, statistics, kind, merge, and fields of the policy's config.

    Raises:
        CheckpointError: There is none, or what is missing, surplus or corrupt in it.
        ConfigError: An option that is not allowed.
    """
    from treadle.policies.load import load_policy as load

    return load(resolve_checkpoint(str(checkpoint)), **options)


def _overrides(settings: Settings | None) -> list[str]:
    return [f"{name}={toml_text(value)}" for name, value in (settings or {}).items()]
