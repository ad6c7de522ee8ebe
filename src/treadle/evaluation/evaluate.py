"""Success of a policy over enumerated scenarios, and films of a few of them.

Shapes: B slots, n slots that still play, C actions of a chunk, A action dimensions.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.config.schema import EvaluationConfig, LoadingConfig, SimulatorConfig
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.devices import prepare_cpu
from treadle.evaluation.statistics import SuccessRate
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.machine import versions
from treadle.simulators.build import build_simulator
from treadle.simulators.host import Host, one_after_another
from treadle.simulators.protocol import Simulator, Slots

Progress = Callable[[str, int, int], None]
"""Called with a suite, the episodes done and the episodes wanted."""

NOISE_STREAM = 0x65766C
"""Keeps evaluation's sampling noise apart from training's."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is taken from the policy, to see whether it uses it."""

    instructions: Literal["own", "shuffled"] = "own"
    """`shuffled`: a random one of the instructions that fit the scene, the episode's own among them."""
    frames: Literal["own", "blank"] = "own"
    """`blank`: grey images."""


@torch.no_grad()
def play(
    policy: Policy,
    simulator: Simulator,
    scenarios: Sequence[Scenario],
    horizon: int,
    sampling: Sampling,
    *,
    ablation: Ablation | None = None,
    on_action: Callable[[Slots], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[EpisodeResult]:
    """Play each scenario once; results in the order of `scenarios`, whatever the order in which they end."""
    host = Host(simulator, one_after_another(scenarios), horizon, on_action=on_action)
    observation = host.start()
    results: dict[Scenario, EpisodeResult] = {}
    chunk, action_dim = policy.chunk, policy.action_dim
    actions = np.zeros((simulator.slots, chunk, action_dim), np.float32)
    while len(slots := host.playing):
        seen = _ablate(observation.take(slots), host, slots, simulator, ablation or Ablation())
        inputs = policy.prepare(seen.frames, seen.instructions, seen.proprioception)
        noise = None
        if sampling.temperature > 0:
            noise = torch.from_numpy(_noise(host, slots, chunk, action_dim)).to(policy.device)
        actions[slots] = policy.act(inputs, sampling, noise).actions.cpu().numpy()
        for result in host.step(actions).episodes:
            results[result.scenario] = result
        if progress is not None:
            progress(len(results))
    return [results[scenario] for scenario in scenarios]


def evaluate_policy(
    policy: Policy,
    simulator: Simulator,
    horizon: int,
    evaluation: EvaluationConfig,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Success on each suite, and on each setting of a suite that has several, as plain data."""
    sampling = Sampling(**evaluation.sampling.model_dump())
    suites: dict[str, Any] = {}
    for suite in evaluation.suites:
        scenarios = simulator.scenarios(suite, "evaluation")[: evaluation.episodes]
        results = play(
            policy,
            simulator,
            scenarios,
            horizon,
            sampling,
            ablation=ablation,
            progress=None if progress is None else partial(_report, progress, suite, len(scenarios)),
        )
        suites[suite] = SuccessRate.of(results).to_json()
        settings = sorted({scenario.suite for scenario in scenarios} - {suite})
        suites[suite]["settings"] = {
            setting: SuccessRate.of([r for r in results if r.scenario.suite == setting]).to_json()
            for setting in settings
        }
    return {"suites": suites}


def evaluate_checkpoint(
    checkpoint: Path,
    policy: LoadingConfig,
    simulator: SimulatorConfig,
    evaluation: EvaluationConfig,
    device: str = "auto",
    *,
    instructions: Literal["own", "shuffled"] = "own",
    frames: Literal["own", "blank"] = "own",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Load a checkpoint directory and evaluate it; the report holds a manifest of everything the figures depend on.

    Raises:
        CheckpointError: The directory cannot be loaded.
        ConfigError: An unknown simulator or suite.
    """
    prepare_cpu(0)
    loaded = load_configured(checkpoint, policy, device=device)
    built = build_simulator(simulator, slots=min(evaluation.slots, evaluation.episodes))
    ablation = Ablation(instructions, frames)
    try:
        report = evaluate_policy(
            loaded, built, evaluation.horizon or simulator.horizon, evaluation, ablation=ablation, progress=progress
        )
    finally:
        built.close()
    report["manifest"] = manifest(checkpoint, policy, simulator, evaluation) | {"ablation": asdict(ablation)}
    return report


def manifest(
    checkpoint: Path, policy: LoadingConfig, simulator: SimulatorConfig, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """What an evaluation's figures depend on."""
    return {
        "checkpoint": checkpoint.name,
        "weights_sha256": {
            path.relative_to(checkpoint).as_posix(): _sha256(path)
            for path in sorted(checkpoint.rglob("*"))
            if path.suffix in (".safetensors", ".pt")
        },
        "policy": policy.model_dump(mode="json", include=set(LoadingConfig.model_fields)),
        "simulator": simulator.model_dump(mode="json"),
        "evaluation": evaluation.model_dump(mode="json"),
        "split": "evaluation",
        "versions": versions(),
    }


def film(
    policy: Policy, simulator: Simulator, scenarios: Sequence[Scenario], horizon: int, sampling: Sampling, size: int
) -> list[tuple[EpisodeResult, NDArray[np.uint8]]]:
    """Play each scenario in a slot of its own and film every action: results and frames [length + 1, size, size, 3]."""
    frames: list[list[NDArray[np.uint8]]] = [[] for _ in scenarios]

    def shoot(slots: Slots) -> None:
        for slot, frame in zip(slots.tolist(), simulator.render(slots, size), strict=True):
            frames[slot].append(frame)

    slots = np.arange(len(scenarios))
    simulator.reset(slots, scenarios)
    shoot(slots)
    results = play(policy, simulator, scenarios, horizon, sampling, on_action=shoot)
    return [(result, np.stack(film)) for result, film in zip(results, frames, strict=True)]


def _report(progress: Progress, suite: str, total: int, done: int) -> None:
    progress(suite, done, total)


def _ablate(
    observation: Observation, host: Host, slots: Slots, simulator: Simulator, ablation: Ablation
) -> Observation:
    if ablation.frames == "blank":
        observation.frames[:] = 127
    if ablation.instructions == "shuffled":
        scenarios = host.scenarios
        for row, slot in enumerate(slots.tolist()):
            scenario = scenarios[slot]
            assert scenario is not None
            fitting = simulator.instructions(scenario)
            choice = np.random.Generator(np.random.Philox(key=[NOISE_STREAM, scenario.index])).integers(len(fitting))
            observation.instructions[row] = fitting[int(choice)]
    return observation


def _noise(host: Host, slots: Slots, chunk: int, action_dim: int) -> NDArray[np.float32]:
    """[n, K] uniform numbers that depend on each episode's scenario and decision alone."""
    elapsed, scenarios = host.elapsed, host.scenarios
    rows = []
    for slot in slots.tolist():
        scenario = scenarios[slot]
        assert scenario is not None
        key = [NOISE_STREAM + int(elapsed[slot]) // chunk, scenario.index]
        rows.append(np.random.Generator(np.random.Philox(key=key)).random(chunk * action_dim, np.float32))
    return np.stack(rows)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
