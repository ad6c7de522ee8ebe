"""Success of a policy over enumerated scenarios."""

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from treadle.config.schema import CollectionConfig, EvaluationConfig, LoadingConfig, SimulatorConfig
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.devices import prepare_cpu
from treadle.errors import SimulatorError
from treadle.evaluation.films import film_outcomes
from treadle.evaluation.folder import EvaluationFolder
from treadle.evaluation.manifest import Manifest, facts_of, manifest, scenarios_digest
from treadle.evaluation.play import AblatedActor, play
from treadle.evaluation.statistics import Rule, SuccessRate, succeeded
from treadle.policies.load import load_configured
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.sources import EVALUATION_NOISE, ScenarioList
from treadle.workers import queries
from treadle.workers.crew import Crew, check_dimensions, check_suites
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew

Progress = Callable[[str, int, int], None]
"""Called with a suite, the episodes done and the episodes wanted."""
Report = Callable[[Mapping[int, EpisodeResult], int], None]
"""Called with episodes that have just ended, by their numbers, and with how many the suite has. With n scenarios,
repeat r of scenario i has number r * n + i.
"""


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is hidden from the policy, to see whether the policy uses it."""

    instructions: Literal["own", "shuffled"] = "own"
    """`shuffled`: a random instruction that fits the scene; it may be the episode's own."""
    frames: Literal["own", "blank"] = "own"
    """`blank`: grey images."""


class Watcher(Protocol):
    """It is told how an evaluation goes on."""

    def begin(self, made: Manifest, wanted: Mapping[str, int], done: Mapping[str, int]) -> None:
        """A checkpoint is about to be played: its manifest, episodes wanted of each suite, and those kept earlier."""
        ...

    def ended(self, suite: str, success: bool) -> None:
        """An episode has ended."""
        ...

    def stage(self, text: str) -> None:
        """What goes on beside episodes."""
        ...


def evaluate_policy(
    policy: Policy,
    crew: Crew,
    horizon: int,
    evaluation: EvaluationConfig,
    *,
    ablation: Ablation | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Success on each suite, and on each setting and task of it, as plain data."""

    def results_of(suite: str) -> list[EpisodeResult]:
        results: dict[int, EpisodeResult] = {}

        def report(ended: Mapping[int, EpisodeResult], total: int) -> None:
            results.update(ended)
            if progress is not None:
                progress(suite, len(results), total)

        play_suite(policy, crew, horizon, evaluation, suite, report, ablation=ablation)
        return [results[number] for number in sorted(results)]

    suites = {suite: summarize_suite(suite, results_of(suite), evaluation.success) for suite in evaluation.suites}
    return {"suites": suites}


def play_suite(
    policy: Policy,
    crew: Crew,
    horizon: int,
    evaluation: EvaluationConfig,
    suite: str,
    report: Report,
    *,
    played: Container[int] = (),
    share: tuple[int, int] = (0, 1),
    ablation: Ablation | None = None,
) -> None:
    """Play a suite's evaluation scenarios, one repeat after another, without those `played` before. `share` (i, n)
    plays every n-th of them from the i-th on, in as large a part of the slots. `horizon` is that of suites without one
    of their own.
    """
    first, step = share
    scenarios = enumerate_scenarios(crew, suite, evaluation.episodes)
    total = len(scenarios) * evaluation.repeats
    report({}, total)
    play_episodes(
        policy,
        crew,
        evaluation.horizon_of(suite, horizon),
        evaluation,
        suite,
        scenarios,
        [number for number in range(total) if number not in played][first::step],
        lambda number, result: report({number: result}, total),
        slots=max(1, evaluation.slots // step),
        ablation=ablation,
    )


def enumerate_scenarios(crew: Crew, suite: str, episodes: int) -> list[Scenario]:
    """The evaluation scenarios of a suite, at most so many. Raises SimulatorError where one is there twice: it would
    count double.
    """
    scenarios = crew.scenarios(suite, "evaluation", 0, episodes)
    places: dict[Scenario, int] = {}
    for place, scenario in enumerate(scenarios):
        if (first := places.setdefault(scenario, place)) != place:
            raise SimulatorError(
                f"{crew.spec.name}: suite {suite!r} lists the evaluation scenario {scenario.id} twice, at {first} and "
                f"{place}; each must be another one, so mend the simulator's scenarios()"
            )
    return scenarios


def play_episodes(
    policy: Policy,
    crew: Crew,
    horizon: int,
    evaluation: EvaluationConfig,
    suite: str,
    scenarios: Sequence[Scenario],
    numbers: Sequence[int],
    ended: Callable[[int, EpisodeResult], None],
    *,
    slots: int,
    ablation: Ablation | None = None,
) -> None:
    """Play episodes of a suite by their numbers, in at most `slots` slots; `ended` is called with each as it ends. With
    n `scenarios`, repeat r of scenario i has number r * n + i.
    """
    ablation, count = ablation or Ablation(), len(scenarios)
    wanted = [scenarios[number % count] for number in numbers]
    asked = _shuffled_instructions(crew, wanted) if ablation.instructions == "shuffled" and wanted else None
    actor = AblatedActor(policy, Sampling(**evaluation.sampling.model_dump()), asked, blank=ablation.frames == "blank")
    # One repeat after another, for a scenario says which episode has ended.
    for repeat in sorted({number // count for number in numbers}):
        places = [number % count for number in numbers if number // count == repeat]
        number_of = {scenarios[place]: repeat * count + place for place in places}
        source = ScenarioList((suite, "evaluation"), places, crew.rows, slots, repeat=repeat)
        lanes = Lanes(crew, Session(horizon), source, policy.chunk)
        play(lanes, actor, ended=lambda result, known=number_of: ended(known[result.scenario], result))


def summarize_suite(suite: str, results: Sequence[EpisodeResult], rule: Rule = "once") -> dict[str, Any]:
    """Success on a suite, and on each of its settings and tasks where it has several, as plain data."""
    settings = sorted({result.scenario.suite for result in results} - {suite})
    tasks = sorted({result.scenario.task for result in results})
    return asdict(SuccessRate.of(results, rule)) | {
        "settings": {
            setting: asdict(SuccessRate.of([r for r in results if r.scenario.suite == setting], rule))
            for setting in settings
        },
        "tasks": {
            task: asdict(SuccessRate.of([r for r in results if r.scenario.task == task], rule))
            for task in (tasks if len(tasks) > 1 else ())
        },
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
    protocol: str | None = None,
    output: Path | None = None,
    name: str | None = None,
    fresh: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Load a checkpoint directory and evaluate it. The report holds a manifest: all that the figures depend on.

    With `output`, episodes are kept as they end in a folder inside it, whose path is the report's `folder`. A later
    call for the same evaluation plays only what is missing. `fresh` plays all again, in another folder, if none is
    missing. `name` begins the folder's name; by default that is the checkpoint's.

    Raises:
        CheckpointError: The directory cannot be loaded.
        ConfigError: An unknown simulator or suite.
        OutputError: The folder cannot be written, or is in use.
    """
    prepare_cpu(0)
    ablation = ablation or Ablation()
    loaded = load_configured(checkpoint, policy, device=device)
    slots = min(evaluation.slots, evaluation.episodes)
    plan = plan_crew(simulator, collection or CollectionConfig(), slots=slots, accelerated=loaded.device.type != "cpu")
    with ExitStack() as opened:
        crew = opened.enter_context(Crew(plan))
        check_dimensions(crew, loaded.action_dim)
        check_suites(crew, evaluation)
        scenarios = {suite: enumerate_scenarios(crew, suite, evaluation.episodes) for suite in evaluation.suites}
        made = {
            **manifest(checkpoint, policy, simulator, evaluation),
            **facts_of(loaded, crew, simulator),
            "protocol": protocol,
            "ablation": asdict(ablation),
            "horizons": {suite: evaluation.horizon_of(suite, simulator.horizon) for suite in evaluation.suites},
            "scenarios": {suite: scenarios_digest(of) for suite, of in scenarios.items()},
        }
        folder = opened.enter_context(EvaluationFolder.open(output, name or made["checkpoint"], made, fresh))
        # Numbers of episodes: with n scenarios, repeat r of scenario i has number r * n + i.
        wanted = {suite: range(len(of) * evaluation.repeats) for suite, of in scenarios.items()}
        if watcher is not None:
            done = {suite: len(folder.episodes.get(suite, {})) for suite in wanted}
            watcher.begin(made, {suite: len(of) for suite, of in wanted.items()}, done)
        try:
            for suite, numbers in wanted.items():

                def ended(number: int, result: EpisodeResult, suite: str = suite) -> None:
                    folder.add(suite, number, result)
                    if watcher is not None:
                        watcher.ended(suite, succeeded(result, evaluation.success))

                played = folder.episodes.setdefault(suite, {})
                missing = [number for number in numbers if number not in played]
                play_episodes(
                    loaded, crew, made["horizons"][suite], evaluation, suite, scenarios[suite], missing, ended,
                    slots=evaluation.slots, ablation=ablation,
                )  # fmt: skip
        finally:
            # Also after Ctrl-C: what was played is kept, with its tables.
            report = _report(folder, wanted, made, evaluation.success)
            folder.write(report)
        if folder.path is not None and evaluation.videos and not folder.has_films and ablation == Ablation():
            if watcher is not None:
                watcher.stage("filming")
            film_outcomes(folder, loaded, crew, scenarios, made["horizons"], evaluation)
    return report | ({} if folder.path is None else {"folder": str(folder.path)})


def _report(folder: EvaluationFolder, wanted: Mapping[str, range], made: dict[str, Any], rule: Rule) -> dict[str, Any]:
    suites = {
        suite: summarize_suite(suite, [of[number] for number in sorted(of)], rule)
        for suite, of in folder.episodes.items()
        if of
    }
    total = sum(map(len, wanted.values()))
    return {"suites": suites, "wanted": total, "complete": folder.count == total, "manifest": made}


def _shuffled_instructions(crew: Crew, scenarios: list[Scenario]) -> dict[Scenario, str]:
    """For each scenario an instruction that fits its scene, drawn by the scenario's index."""
    fitting: list[list[str]] = crew.call(queries.INSTRUCTIONS, scenarios)
    return {
        scenario: texts[
            int(np.random.Generator(np.random.Philox(key=[EVALUATION_NOISE, scenario.index])).integers(len(texts)))
        ]
        for scenario, texts in zip(scenarios, fitting, strict=True)
    }
