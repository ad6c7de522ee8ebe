"""The supervised stage: perception from rendered scenes, then imitation of demonstrations."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.run_directory import claim_run_directory, hold_run_directory
from treadle.config.schema import FineTuningConfig
from treadle.config.supervised import SupervisedConfig
from treadle.data.demonstrations import Demonstrations, open_demonstrations
from treadle.data.lerobot_info import Columns, read_info
from treadle.devices import choose_device, computes_bfloat16, prepare_cpu
from treadle.errors import CheckpointError, ConfigError
from treadle.evaluation.evaluate import evaluate_policy
from treadle.evaluation.manifest import manifest
from treadle.files import to_json, write_atomically
from treadle.policies.checkpoint import check_shapes, shapes
from treadle.policies.load import load_policy, policy_class
from treadle.policies.protocol import Policy
from treadle.reporting.console import RunConsole
from treadle.reporting.log import RunLog
from treadle.reporting.machine import write_machine
from treadle.reporting.metrics import METRICS_FILE, MetricsWriter, read_metrics
from treadle.reporting.supervised import write_curves
from treadle.simulators.protocol import Scenes
from treadle.supervised.checkpoint import ImitationCheckpoint, is_finished
from treadle.supervised.checks import check_policy, check_scaling, check_simulator, choose_cameras
from treadle.supervised.chunks import Chunks
from treadle.supervised.demonstrations import record_demonstrations
from treadle.supervised.grounding import Groundable, Grounding, pretrain_jointly, pretrain_vision
from treadle.supervised.imitation import dataset_statistics, imitate
from treadle.supervised.progress import REPORT_EVERY, Progress
from treadle.supervised.robot import train_on_dataset
from treadle.training.finetuning import load_trainable
from treadle.workers import queries
from treadle.workers.crew import Crew, check_suites
from treadle.workers.plan import plan_crew

_log = logging.getLogger(__name__)

RESULT = "evaluation/base.json"
"""The evaluation of a run's policy; written last."""
PERCEPTION = "perception"
"""Folder in a run's, with the policy before imitation."""
GROUNDING_HEAD = "grounding_head.safetensors"


@dataclass
class _Run:
    """What every step of the stage is given."""

    config: SupervisedConfig
    directory: Path
    device: torch.device
    crew: Crew
    console: RunConsole
    progress: Progress
    checkpoint: ImitationCheckpoint


def train_supervised(config: SupervisedConfig) -> Path:
    """Run a supervised recipe; returns the run's folder, whose `policy/` is the checkpoint.

    The same call after a run that was cut short goes on from what it finished: demonstrations, perception, and
    the last checkpoint of imitation. A finished run stays as it is.

    Raises:
        TreadleError: Anything that is the user's to mend.
    """
    if config.robot.name is not None:
        return train_on_dataset(config)
    # Everything that can be wrong is found before anything is made.
    prepare_cpu(config.torch_threads)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    for name in (config.checkpoint, config.grounding.towers):
        if name is not None:
            resolve_checkpoint(name)
    if config.checkpoint is None:
        policy_class(config.model.kind, "model.kind")
    if config.policy.kind is not None:
        policy_class(config.policy.kind)
    if config.dataset is not None:
        read_info(config.dataset)
    plan = plan_crew(config.simulator, config.collection, accelerated=device.type != "cpu")
    with hold_run_directory(config, _log.warning) as directory, Crew(plan) as crew:
        check_suites(crew, config.evaluation)
        _check_vision(crew, config)
        if is_finished(directory, RESULT, _log.warning):
            return directory
        claim_run_directory(directory, config)
        write_machine(directory, str(device))
        with _open_run(config, directory, device, crew) as run:
            report = _train(run)
    # The curves and the report of the evaluation.
    write_curves(directory, read_metrics(directory))
    report["manifest"] = manifest(directory / "policy", config.policy, config.simulator, config.evaluation)
    (directory / RESULT).parent.mkdir(exist_ok=True)
    write_atomically(directory / RESULT, to_json(report))
    run.checkpoint.remove()
    return directory


def _train(run: _Run) -> dict[str, Any]:
    """Demonstrations, a policy that sees, imitation, evaluation: the report of the last."""
    config, console = run.config, run.console
    dataset = config.dataset or _record(run)
    columns = Columns(config.columns.action, config.columns.state)
    demonstrations = open_demonstrations(dataset, choose_cameras(dataset, run.crew.spec, config.cameras), columns)
    policy, grounding = _starting_policy(run, dataset, demonstrations)
    console.stage("imitating")
    report = run.progress.report("imitation", "loss", "total")
    chunks = Chunks.of(demonstrations, policy.predicted, run.crew.spec.actions, held=config.imitation.held)
    imitate(policy, demonstrations, chunks, config.imitation, config.seed, grounding, report, run.checkpoint)
    policy.save(run.directory / "policy")
    console.stage("evaluating")
    horizon = config.evaluation.horizon or config.simulator.horizon
    return evaluate_policy(policy, run.crew, horizon, config.evaluation)


def _starting_policy(run: _Run, dataset: Path, demonstrations: Demonstrations) -> tuple[Policy, Grounding | None]:
    """The policy that is to imitate: a checkpoint's, or a new one; and the grounding that keeps a new one's perception,
    where the simulator renders scenes.
    """
    config, crew, perception = run.config, run.crew, run.directory / PERCEPTION
    if config.checkpoint is not None:
        return _load_checkpoint(run, config.checkpoint, dataset, demonstrations), None
    check_simulator(dataset, demonstrations, crew.spec, None)
    if not crew.renders_scenes:
        return make_tiny_policy(config, crew, demonstrations).to(run.device), None
    run.console.stage("rendering scenes")
    scenes: Scenes = crew.call(queries.SCENES, config.grounding.scenes, config.grounding.seed)
    if not perception.exists():
        policy = _groundable(make_tiny_policy(config, crew, demonstrations).to(run.device), config)
        if config.grounding.towers is not None:
            take_vision(policy, resolve_checkpoint(config.grounding.towers))
        _learn_to_see(run, policy, scenes)
    return _resume_perception(run, scenes)


def _load_checkpoint(run: _Run, name: str, dataset: Path, demonstrations: Demonstrations) -> Policy:
    """The policy of a checkpoint, which the demonstrations and the simulator fit. Raises ConfigError."""
    config, spec = run.config, run.crew.spec
    start, frozen = resolve_checkpoint(name), config.imitation.freeze_vision
    policy = load_trainable(start, config.policy, run.device, freeze_vision=frozen)
    check_policy(dataset, demonstrations, policy)
    check_simulator(dataset, demonstrations, spec, policy)
    if config.imitation.statistics == "dataset":
        policy.rescale(spec.name, dataset_statistics(demonstrations, spec.actions))
    else:
        check_scaling(dataset, demonstrations, policy, spec)
    return policy


def make_tiny_policy(config: SupervisedConfig, crew: Crew, demonstrations: Demonstrations) -> Policy:
    """A policy from nothing, with the simulator's words and the statistics of the demonstrations."""
    _check_teacher(crew, config)
    words: list[str] = crew.call(queries.VOCABULARY)
    return policy_class(config.model.kind, "model.kind").create_tiny(
        config.model, crew.spec, words, dataset_statistics(demonstrations, crew.spec.actions), seed=config.seed
    )


def take_vision(policy: Groundable, source: Path) -> None:
    """Copy the vision of a checkpoint. Raises CheckpointError where it does not fit."""
    seen = load_policy(source, device="cpu")
    if not isinstance(seen, Groundable):
        raise CheckpointError(f"{source}: grounding.towers: policy {seen.kind!r} has no vision that can be taken")
    mine, found = policy.vision_parts(), seen.vision_parts().state_dict()
    check_shapes(shapes(mine.state_dict()), shapes(found), source)
    mine.load_state_dict(found)


@contextmanager
def _open_run(config: SupervisedConfig, directory: Path, device: torch.device, crew: Crew) -> Iterator[_Run]:
    """A run with console, log and metrics; metrics of what an earlier call finished are kept."""
    checkpoint = ImitationCheckpoint(directory, config.imitation.save_every, _log.warning)
    done = _lines_of_perception(config) if (directory / PERCEPTION).exists() else 0
    done += checkpoint.step // REPORT_EVERY
    resumed = done if (directory / METRICS_FILE).exists() else None
    lines = config.imitation.steps // REPORT_EVERY
    if config.checkpoint is None and crew.renders_scenes:
        lines += _lines_of_perception(config)
    with (
        RunConsole(config.name, lines) as console,
        RunLog(directory, console.message),
        MetricsWriter(directory, resumed) as writer,
    ):
        progress = Progress(console, writer, read_metrics(directory) if done else [])
        yield _Run(config, directory, device, crew, console, progress, checkpoint)


def _lines_of_perception(config: SupervisedConfig) -> int:
    settings = config.grounding
    detection = settings.detection_steps if settings.towers is None else 0
    return sum(steps // REPORT_EVERY for steps in (detection, settings.joint_steps))


def _check_teacher(crew: Crew, config: SupervisedConfig) -> None:
    """Raises ConfigError where the simulator brings no expert."""
    if not crew.teaches:
        raise ConfigError(
            f"simulator.name {config.simulator.name!r}: it has no scripted expert to learn from; "
            "give both a dataset and a checkpoint"
        )


def _check_vision(crew: Crew, config: SupervisedConfig) -> None:
    """A policy from nothing must learn to see, from scenes or with its imitation."""
    if config.checkpoint is None and config.imitation.freeze_vision and not crew.renders_scenes:
        raise ConfigError(
            f"imitation.freeze_vision true with simulator.name {config.simulator.name!r}, which renders no scenes to "
            "learn to see from, so vision from nothing would stay random; use imitation.freeze_vision=false and "
            "imitation.grounding_share=0, or a checkpoint"
        )


def _groundable(policy: Policy, config: SupervisedConfig) -> Any:
    """The policy, which is `Groundable`. Raises ConfigError where it is not."""
    if not isinstance(policy, Groundable):
        raise ConfigError(
            f"model.kind {config.model.kind!r}: its perception cannot be pre-trained on scenes; start from a checkpoint"
        )
    return policy


def _record(run: _Run) -> Path:
    """The folder of the demonstrations, which are recorded where they are not there yet."""
    config, console = run.config, run.console
    directory, unfinished = run.directory / "demonstrations", run.directory / ".demonstrations"
    if directory.exists():
        return directory
    shutil.rmtree(unfinished, ignore_errors=True)
    console.stage("recording demonstrations")
    _check_teacher(run.crew, config)
    rate = record_demonstrations(run.crew, config.demonstrations, config.seed, unfinished, console.progress)
    unfinished.rename(directory)
    console.message(f"the expert solved {rate:.1%} of {config.demonstrations.episodes} scenarios")
    return directory


def _learn_to_see(run: _Run, policy: Any, scenes: Scenes) -> None:
    """Both stages of perception, or the second where vision was taken; leaves policy and grounding head in the run's
    folder, whole or not at all.
    """
    settings = run.config.grounding
    rng = np.random.default_rng(run.config.seed)
    # Vision alone finds every thing.
    if settings.towers is None:
        run.console.stage("pre-training the vision towers")
        pretrain_vision(
            policy,
            scenes,
            settings.detection_steps,
            settings.batch,
            settings.learning_rate,
            rng,
            run.progress.report("detection", "loss", *(f"{thing}_error" for thing in scenes.things)),
            settings.bfloat16 and computes_bfloat16(policy.device),
        )
    # The whole policy finds what an instruction names.
    run.console.stage("pre-training the whole policy")
    grounding = Grounding(policy, scenes, rng)
    report = run.progress.report("grounding", "loss", *(f"{thing}_error" for thing in scenes.asked))
    pretrain_jointly(policy, grounding, settings.joint_steps, settings.batch, settings.learning_rate, report)
    # Kept for a run that is cut short later on.
    unfinished = run.directory / f".{PERCEPTION}"
    shutil.rmtree(unfinished, ignore_errors=True)
    policy.save(unfinished)
    save_file(grounding.head.state_dict(), unfinished / GROUNDING_HEAD)
    unfinished.rename(run.directory / PERCEPTION)


def _resume_perception(run: _Run, scenes: Scenes) -> tuple[Policy, Grounding]:
    """A policy that sees, and the grounding that keeps it so; the same whether its perception is old or new."""
    directory = run.directory / PERCEPTION
    policy = load_trainable(directory, FineTuningConfig(), run.device, freeze_vision=True)
    grounding = Grounding(_groundable(policy, run.config), scenes, np.random.default_rng((run.config.seed, 1)))
    grounding.head.load_state_dict(load_file(directory / GROUNDING_HEAD, device=str(run.device)))
    return policy, grounding
