"""Success of a policy over enumerated scenarios, and films of a few of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.config.schema import CollectionConfig, EvaluationConfig, LoadingConfig, SamplingConfig, SimulatorConfig
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.devices import prepare_cpu
from treadle.evaluation.play import AblatedActor, play
from treadle.evaluation.statistics import SuccessRate
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy, Sampling
from treadle.reporting.machine import versions
from treadle.rollout.actor import Actor
from treadle.rollout.sources import EVALUATION_NOISE, ScenarioList
from treadle.workers import queries
from treadle.workers.crew import Crew, check_dimensions
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew

Progress = Callable[[str, int, int], None]
"""Called with a suite, the episodes done and the episodes wanted."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is hidden from the policy, to see whether the policy uses it."""

    instructions: Literal["own", "shuffled"] = "own"
    """`shuffled`: a random instruction that fits the scene; it may be the episode's own."""
    frames: Literal["own", "blank"] = "own"
    """`blank`: grey images."""


def evaluate_policy(
    policy: Policy,
    crew: Crew,
    horizon: int,
    evaluation: EvaluationConfig,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Success on each suite, and on each setting of a suite that has several, as plain data."""
    suites: dict[str, Any] = {}
    for suite in evaluation.suites:

        def report(done: int, total: int, suite: str = suite) -> None:
            if progress is not None:
                progress(suite, done, total)

        results = play_suite(policy, crew, horizon, evaluation, suite, ablation=ablation, progress=report)
        suites[suite] = summarize_suite(suite, results)
    return {"suites": suites}


def play_suite(
    policy: Policy,
    crew: Crew,
    horizon: int,
    evaluation: EvaluationConfig,
    suite: str,
    *,
    share: tuple[int, int] = (0, 1),
    ablation: Ablation | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[EpisodeResult]:
    """The results of a suite's evaluation scenarios, in order. `share` (i, n) plays every n-th from number i on, in as
    large a part of the slots; `progress` is called with the episodes done and wanted.
    """
    ablation = ablation or Ablation()
    first, step = share
    scenarios = crew.scenarios(suite, "evaluation", 0, evaluation.episodes)[first::step]
    if not scenarios:
        return []

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(scenarios))

    asked = _shuffled_instructions(crew, scenarios) if ablation.instructions == "shuffled" else None
    actor = AblatedActor(policy, _sampling(evaluation.sampling), asked, blank=ablation.frames == "blank")
    numbers = range(first, first + step * len(scenarios), step)
    lanes = _lanes(crew, Session(horizon), suite, numbers, max(1, evaluation.slots // step), policy.chunk)
    results = play(lanes, actor, report).results
    return [results[scenario] for scenario in scenarios]


def summarize_suite(suite: str, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Success on a suite, and on each of its settings, as plain data."""
    settings = sorted({result.scenario.suite for result in results} - {suite})
    return asdict(SuccessRate.of(results)) | {
        "settings": {
            setting: asdict(SuccessRate.of([result for result in results if result.scenario.suite == setting]))
            for setting in settings
        }
    }


def evaluate_checkpoint(
    checkpoint: Path,
    policy: LoadingConfig,
    simulator: SimulatorConfig,
    evaluation: EvaluationConfig,
    device: str = "auto",
    *,
    collection: CollectionConfig | None = None,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Load a checkpoint directory and evaluate it. The report holds a manifest: all that the figures depend on.

    Raises:
        CheckpointError: The directory cannot be loaded.
        ConfigError: An unknown simulator or suite.
    """
    prepare_cpu(0)
    loaded = load_configured(checkpoint, policy, device=device)
    slots = min(evaluation.slots, evaluation.episodes)
    plan = plan_crew(simulator, collection or CollectionConfig(), slots=slots, accelerated=loaded.device.type != "cpu")
    with Crew(plan) as crew:
        check_dimensions(crew, loaded.action_dim)
        horizon = evaluation.horizon or simulator.horizon
        report = evaluate_policy(loaded, crew, horizon, evaluation, ablation=ablation, progress=progress)
    made = manifest(checkpoint, policy, simulator, evaluation)
    report["manifest"] = made | {"ablation": asdict(ablation or Ablation())}
    return report


def film(
    policy: Policy, crew: Crew, count: int, horizon: int, sampling: SamplingConfig, size: int
) -> list[tuple[EpisodeResult, NDArray[np.uint8]]]:
    """Play the first in-distribution scenarios and film every action: results, frames [length + 1, size, size, 3]."""
    scenarios = crew.scenarios("train", "evaluation", 0, count)
    lanes = _lanes(crew, Session(horizon, film=size), "train", range(len(scenarios)), count, policy.chunk)
    played = play(lanes, Actor(policy, _sampling(sampling)))
    return [(played.results[scenario], np.stack(played.frames[scenario])) for scenario in scenarios]


def manifest(
    checkpoint: Path, policy: LoadingConfig, simulator: SimulatorConfig, evaluation: EvaluationConfig
) -> dict[str, Any]:
    """All that the figures of an evaluation depend on."""
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


def _lanes(crew: Crew, session: Session, suite: str, numbers: Sequence[int], slots: int, chunk: int) -> Lanes:
    """Lanes that play scenarios of a suite, by number, in at most `slots` slots."""
    return Lanes(crew, session, ScenarioList((suite, "evaluation"), numbers, crew.rows, slots), chunk)


def _sampling(config: SamplingConfig) -> Sampling:
    return Sampling(**config.model_dump())


def _shuffled_instructions(crew: Crew, scenarios: list[Scenario]) -> dict[Scenario, str]:
    """For each scenario an instruction that fits its scene, drawn by the scenario's index."""
    fitting: list[list[str]] = crew.call(queries.INSTRUCTIONS, scenarios)
    return {
        scenario: texts[
            int(np.random.Generator(np.random.Philox(key=[EVALUATION_NOISE, scenario.index])).integers(len(texts)))
        ]
        for scenario, texts in zip(scenarios, fitting, strict=True)
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
