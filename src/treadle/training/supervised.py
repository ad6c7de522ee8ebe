"""The supervised stage: perception from rendered scenes, then imitation of demonstrations."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from treadle.config.loading import resolve_checkpoint
from treadle.config.run_directory import create_run_directory
from treadle.config.schema import FineTuningConfig, SupervisedConfig
from treadle.data.demonstrations import Demonstrations, read_demonstrations
from treadle.devices import choose_device, computes_bfloat16, prepare_cpu
from treadle.errors import CheckpointError, ConfigError
from treadle.evaluation.evaluate import evaluate_policy, manifest
from treadle.files import to_json, write_atomically
from treadle.policies.checkpoint import check_shapes, shapes
from treadle.policies.load import load_policy
from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.tiny import create_tiny
from treadle.reporting.console import RunConsole
from treadle.reporting.log import RunLog
from treadle.reporting.machine import write_machine
from treadle.reporting.metrics import METRICS_FILE, MetricsWriter, read_metrics
from treadle.reporting.supervised import write_curves
from treadle.simulators.build import build_simulator
from treadle.simulators.protocol import SceneTeacher, Simulator, Teacher
from treadle.training.demonstrations import record_demonstrations
from treadle.training.finetuning import load_trainable
from treadle.training.grounding import Grounding, pretrain_jointly, pretrain_towers
from treadle.training.imitation import dataset_statistics, imitate

REPORT_EVERY = 50
"""Steps between two lines of metrics."""
PERCEPTION = "perception"
"""Folder in a run's, with the policy before imitation."""
GROUNDING_HEAD = "grounding_head.safetensors"


def train_supervised(config: SupervisedConfig) -> Path:
    """Run a supervised recipe; returns the run's folder, whose `policy/` is the checkpoint.

    The same call after a run that was cut short goes on from what it finished: demonstrations, perception.

    Raises:
        TreadleError: Anything that is the user's to mend.
    """
    prepare_cpu(config.torch_threads)
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    start = None if config.checkpoint is None else resolve_checkpoint(config.checkpoint)
    towers = None if config.grounding.towers is None else resolve_checkpoint(config.grounding.towers)
    run = create_run_directory(config)
    write_machine(run, str(device))
    simulator = build_simulator(config.simulator)
    done = _lines_of_perception(config) if (run / PERCEPTION).exists() else 0
    resumed = done if (run / METRICS_FILE).exists() else None
    try:
        _check_eyes(simulator, config)
        lines = _line_count(config, isinstance(simulator, SceneTeacher))
        with (
            RunConsole(config.name, lines) as console,
            RunLog(run, console.message),
            MetricsWriter(run, resumed) as writer,
        ):
            stages = _Stages(console, writer, read_metrics(run) if done else [])
            dataset = config.dataset or _record(_teacher(simulator, config), config, run, console)
            demonstrations = read_demonstrations(dataset)
            grounding = None
            if start is not None:
                policy = load_trainable(start, config.policy, device, freeze_vision=config.imitation.freeze_vision)
            elif isinstance(simulator, SceneTeacher):
                if not (run / PERCEPTION).exists():
                    policy = make_tiny_policy(config, simulator, demonstrations).to(device)
                    if towers is not None:
                        take_towers(policy, towers)
                    _learn_to_see(policy, simulator, config, stages, run)
                policy, grounding = _resume_perception(run / PERCEPTION, simulator, config, device)
            else:
                policy = make_tiny_policy(config, _teacher(simulator, config), demonstrations).to(device)
            console.stage("imitating")
            imitate(
                policy,
                demonstrations,
                config.imitation,
                config.seed,
                grounding,
                stages.report("imitation", "loss", "total"),
            )
            policy.save(run / "policy")
            console.stage("evaluating")
            report = evaluate_policy(
                policy, simulator, config.evaluation.horizon or config.simulator.horizon, config.evaluation
            )
    finally:
        simulator.close()
    write_curves(run, read_metrics(run))
    report["manifest"] = manifest(run / "policy", config.policy, config.simulator, config.evaluation)
    (run / "evaluation").mkdir(exist_ok=True)
    write_atomically(run / "evaluation" / "base.json", to_json(report))
    return run


def make_tiny_policy(config: SupervisedConfig, simulator: Teacher, demonstrations: Demonstrations) -> PrismaticPolicy:
    """A policy from nothing, with a tokenizer of the simulator's words and the statistics of the demonstrations."""
    statistics = dataset_statistics(demonstrations)
    return create_tiny(config.model, simulator.spec, simulator.vocabulary(), statistics, seed=config.seed)


def take_towers(policy: PrismaticPolicy, source: Path) -> None:
    """Copy the vision towers and the projector of a checkpoint. Raises CheckpointError where they do not fit."""
    seen = load_policy(source, device="cpu")
    if not isinstance(seen, PrismaticPolicy):
        raise CheckpointError(f"{source}: grounding.towers: it has no vision towers")
    for mine, theirs in ((policy.vision_backbone, seen.vision_backbone), (policy.projector, seen.projector)):
        found = theirs.state_dict()
        check_shapes(shapes(mine.state_dict()), shapes(found), source)
        mine.load_state_dict(found)


class _Stages:
    """Counts steps over all stages, and turns what they report into metrics."""

    def __init__(self, console: RunConsole, writer: MetricsWriter, before: Sequence[Mapping[str, float]]) -> None:
        """`before`: the lines of stages that an earlier call finished."""
        self.console = console
        self._writer = writer
        self._start = time.perf_counter() - (before[-1]["seconds"] if before else 0.0)
        self._lines = len(before)

    def report(self, stage: str, *names: str) -> Callable[..., None]:
        """A callback that averages what it is given and writes it every few steps."""
        sums: list[float] = []

        def add(step: int, *values: float | Sequence[float]) -> None:
            nonlocal sums
            flat = [x for value in values for x in (value if isinstance(value, Sequence) else (value,))]
            sums = [a + b for a, b in zip(sums or [0.0] * len(flat), flat, strict=True)]
            if (step + 1) % REPORT_EVERY == 0:
                self._lines += 1
                metrics = {"iteration": self._lines, "seconds": time.perf_counter() - self._start}
                metrics |= {f"{stage}/{name}": x / REPORT_EVERY for name, x in zip(names, sums, strict=False)}
                self._writer.write(metrics)
                self.console.iteration(metrics)
                sums = []

        return add


def _line_count(config: SupervisedConfig, has_scenes: bool) -> int:
    """How many lines of metrics a run has."""
    perception = _lines_of_perception(config) if config.checkpoint is None and has_scenes else 0
    return perception + config.imitation.steps // REPORT_EVERY


def _lines_of_perception(config: SupervisedConfig) -> int:
    settings = config.grounding
    detection = settings.detection_steps if settings.towers is None else 0
    return sum(steps // REPORT_EVERY for steps in (detection, settings.joint_steps))


def _teacher(simulator: Simulator, config: SupervisedConfig) -> Teacher:
    if not isinstance(simulator, Teacher):
        raise ConfigError(
            f"simulator.name {config.simulator.name!r}: it has no scripted expert to learn from; "
            "give both a dataset and a checkpoint"
        )
    return simulator


def _check_eyes(simulator: Simulator, config: SupervisedConfig) -> None:
    """A policy from nothing must learn to see, from scenes or with its imitation."""
    if config.checkpoint is None and config.imitation.freeze_vision and not isinstance(simulator, SceneTeacher):
        raise ConfigError(
            f"imitation.freeze_vision true with simulator.name {config.simulator.name!r}, which renders no scenes to "
            "learn to see from, so towers from nothing would stay random; use imitation.freeze_vision=false and "
            "imitation.grounding_share=0, or a checkpoint"
        )


def _record(simulator: Teacher, config: SupervisedConfig, run: Path, console: RunConsole) -> Path:
    directory, unfinished = run / "demonstrations", run / ".demonstrations"
    if directory.exists():
        return directory
    shutil.rmtree(unfinished, ignore_errors=True)
    console.stage("recording demonstrations")
    expert = simulator.expert(config.seed, miss_probability=config.demonstrations.miss_probability)
    rate = record_demonstrations(simulator, expert, config.demonstrations, unfinished, console.progress)
    unfinished.rename(directory)
    console.message(f"the expert solved {rate:.1%} of {config.demonstrations.episodes} scenarios")
    return directory


def _learn_to_see(
    policy: PrismaticPolicy, simulator: SceneTeacher, config: SupervisedConfig, stages: _Stages, run: Path
) -> None:
    """Both stages of perception, or the second where towers were taken; leaves policy and grounding head in the run's
    folder, whole or not at all.
    """
    settings = config.grounding
    stages.console.stage("rendering scenes")
    scenes = simulator.scenes(settings.scenes, settings.seed)
    rng = np.random.default_rng(config.seed)
    if settings.towers is None:
        stages.console.stage("pre-training the vision towers")
        names = ("loss", "object_error", "second_object_error", "plate_error", "second_plate_error")
        pretrain_towers(
            policy,
            scenes,
            settings.detection_steps,
            settings.batch,
            settings.learning_rate,
            rng,
            stages.report("detection", *names),
            settings.bfloat16 and computes_bfloat16(policy.device),
        )
    stages.console.stage("pre-training the whole policy")
    grounding = Grounding(policy, scenes, rng)
    pretrain_jointly(
        policy,
        grounding,
        settings.joint_steps,
        settings.batch,
        settings.learning_rate,
        stages.report("grounding", "loss", "object_error", "plate_error"),
    )
    unfinished = run / f".{PERCEPTION}"
    shutil.rmtree(unfinished, ignore_errors=True)
    policy.save(unfinished)
    save_file(grounding.head.layer.state_dict(), unfinished / GROUNDING_HEAD)
    unfinished.rename(run / PERCEPTION)


def _resume_perception(
    directory: Path, simulator: SceneTeacher, config: SupervisedConfig, device: torch.device
) -> tuple[PrismaticPolicy, Grounding]:
    """A policy that sees, and the grounding that keeps it so; the same whether its perception is old or new."""
    policy = load_trainable(directory, FineTuningConfig(), device, freeze_vision=True)
    assert isinstance(policy, PrismaticPolicy)
    scenes = simulator.scenes(config.grounding.scenes, config.grounding.seed)
    grounding = Grounding(policy, scenes, np.random.default_rng((config.seed, 1)))
    grounding.head.layer.load_state_dict(load_file(directory / GROUNDING_HEAD, device=str(device)))
    return policy, grounding
