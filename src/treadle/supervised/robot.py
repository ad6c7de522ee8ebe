"""The supervised stage for a robot of your own: a data set, no simulator."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.run_directory import claim_run_directory, hold_run_directory
from treadle.config.supervised import SupervisedConfig
from treadle.data.demonstrations import Demonstrations, open_demonstrations
from treadle.data.lerobot_info import Columns, read_info
from treadle.devices import choose_device, prepare_cpu
from treadle.errors import ConfigError
from treadle.files import to_json, write_atomically
from treadle.policies.embodiment import Embodiment
from treadle.policies.load import policy_class
from treadle.policies.protocol import Policy
from treadle.reporting.console import RunConsole
from treadle.reporting.log import RunLog
from treadle.reporting.machine import write_machine
from treadle.reporting.metrics import MetricsWriter, read_metrics
from treadle.reporting.supervised import write_curves
from treadle.supervised.checkpoint import ImitationCheckpoint, is_finished
from treadle.supervised.chunks import Chunks
from treadle.supervised.imitation import dataset_statistics, imitate
from treadle.supervised.open_loop import open_loop_error
from treadle.supervised.progress import REPORT_EVERY, Progress
from treadle.training.finetuning import load_trainable

_log = logging.getLogger(__name__)

OPEN_LOOP = "evaluation/open_loop.json"
"""Errors before and after, in the folder of a run; written last."""


def train_on_dataset(config: SupervisedConfig) -> Path:
    """Train a policy on a data set of a robot of your own; returns the run's folder, whose `policy/` is the checkpoint,
    with the data set's statistics under the robot's name.

    Raises:
        TreadleError: Anything that is the user's to mend.
    """
    # Everything that can be wrong is found before anything is made.
    prepare_cpu(config.torch_threads)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    demonstrations, embodiment = read_dataset(config)
    held_out = _first_held_out(config, demonstrations)
    learned = demonstrations.head(held_out)
    policy, chunks = _make_policy(config, learned, embodiment, device)
    with (
        hold_run_directory(config, _log.warning) as directory,
        RunConsole(config.name, config.imitation.steps // REPORT_EVERY) as console,
        RunLog(directory, console.message),
    ):
        if is_finished(directory, OPEN_LOOP, console.message):
            return directory
        claim_run_directory(directory, config)
        write_machine(directory, str(device))
        checkpoint = ImitationCheckpoint(directory, config.imitation.save_every, console.message)
        errors: dict[str, Any] = {"held_out": config.robot.held_out}
        first = 0 if held_out == len(demonstrations.actions) else held_out

        def measure(when: str) -> None:
            console.stage(f"measuring the open-loop error {when}")
            found = open_loop_error(policy, demonstrations, embodiment.restore, first=first)
            errors[when] = found.report()
            console.message(f"open-loop error {when}: {found.mean:.3g} standard deviations")

        measure("before")
        began = time.perf_counter()
        with MetricsWriter(directory, checkpoint.step // REPORT_EVERY) as writer:
            console.stage("imitating")
            report = Progress(console, writer, read_metrics(directory)).report("imitation", "loss", "total")
            imitate(policy, learned, chunks, config.imitation, config.seed, None, report, checkpoint)
        console.message(f"learned for {time.perf_counter() - began:.0f} s")
        policy.save(directory / "policy")
        embodiment.write(directory / "policy")
        measure("after")
        write_curves(directory, read_metrics(directory))
        write_atomically(directory / OPEN_LOOP, to_json(errors) + "\n")
        checkpoint.remove()
    return directory


def read_dataset(config: SupervisedConfig) -> tuple[Demonstrations, Embodiment]:
    """The data set of a configuration, and what it is of. Raises ConfigError."""
    assert config.dataset is not None
    columns = Columns(config.columns.action, config.columns.state)
    demonstrations = open_demonstrations(config.dataset, config.cameras or None, columns)
    names = read_info(config.dataset, columns).action_names
    return demonstrations, Embodiment.of(config.robot, demonstrations, names)


def _first_held_out(config: SupervisedConfig, demonstrations: Demonstrations) -> int:
    """The first frame of those that are not learned. Raises ConfigError where none is left to learn."""
    count = int(demonstrations.episode_index[-1]) + 1
    if config.robot.held_out >= count:
        raise ConfigError(
            f"robot.held_out {config.robot.held_out}: the data set has {count} episodes, so there would be nothing to "
            f"learn; use at most {count - 1}"
        )
    found = demonstrations.episode_index.searchsorted(count - config.robot.held_out)
    return int(found)


def _make_policy(
    config: SupervisedConfig, demonstrations: Demonstrations, embodiment: Embodiment, device: torch.device
) -> tuple[Policy, Chunks]:
    """The policy that is to learn, which scales by the data set's statistics; and what it learns."""
    settings, dimensions = config.imitation, embodiment.dimensions
    if config.checkpoint is None:
        # Its chunk is that of the configuration; statistics are needed before there is a policy.
        chunks = _cut(config, demonstrations, embodiment, config.model.chunk)
        statistics = dataset_statistics(demonstrations, dimensions, chunks)
        made = policy_class(config.model.kind, "model.kind").create_tiny(
            config.model, embodiment.spec, sorted(set(demonstrations.instructions)), statistics, seed=config.seed
        )
        policy = made.to(device)
    else:
        start = resolve_checkpoint(config.checkpoint)
        policy = load_trainable(start, config.policy, device, freeze_vision=settings.freeze_vision)
        chunks = _cut(config, demonstrations, embodiment, policy.predicted)
        policy.rescale(embodiment.name, dataset_statistics(demonstrations, dimensions, chunks))
    if settings.freeze_vision and config.checkpoint is None:
        raise ConfigError(
            "imitation.freeze_vision true without a checkpoint: vision from nothing would stay random; use "
            "imitation.freeze_vision=false and imitation.grounding_share=0, or a checkpoint"
        )
    if policy.predicted != chunks.size:
        chunks = _cut(config, demonstrations, embodiment, policy.predicted)
    return policy, chunks


def _cut(config: SupervisedConfig, demonstrations: Demonstrations, embodiment: Embodiment, size: int) -> Chunks:
    return Chunks.of(
        demonstrations, size, embodiment.dimensions, held=config.imitation.held, deltas=config.robot.deltas
    )
