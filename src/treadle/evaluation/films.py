"""Films of episodes."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.config.schema import EvaluationConfig, SamplingConfig
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.evaluation.folder import EvaluationFolder
from treadle.evaluation.play import play
from treadle.evaluation.statistics import Rule, succeeded
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.sources import ScenarioList
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session

FILM_SIZE = 224
"""Pixels of a filmed frame's side."""


def film_scenarios(
    policy: Policy,
    crew: Crew,
    suite: str,
    scenarios: Sequence[Scenario],
    places: Sequence[int],
    horizon: int,
    sampling: SamplingConfig,
    size: int,
    repeat: int = 0,
) -> list[tuple[EpisodeResult, NDArray[np.uint8]]]:
    """Play scenarios by their places in the suite and film every action: results, and frames
    [length + 1, size, size, 3].
    """
    source = ScenarioList((suite, "evaluation"), places, crew.rows, len(places), repeat=repeat)
    lanes = Lanes(crew, Session(horizon, film=size), source, policy.chunk)
    played = play(lanes, Actor(policy, Sampling(**sampling.model_dump())))
    chosen = [scenarios[place] for place in places]
    return [(played.results[scenario], np.stack(played.frames[scenario])) for scenario in chosen]


def choose_scenes(results: Mapping[str, Sequence[EpisodeResult]], rule: Rule, count: int) -> list[tuple[str, int]]:
    """Suites and places of at most `count` scenarios to film before and after training: first where the base fails, the
    suites in turn; at the end one where it succeeds, and more of them where it fails too seldom.
    """
    failed, solved = (_in_turn(results, rule, success=success) for success in (False, True))
    failed = failed[: count - min(1, len(solved))]
    return failed + solved[: count - len(failed)]


def _in_turn(
    results: Mapping[str, Sequence[EpisodeResult]] | Mapping[str, Mapping[int, EpisodeResult]],
    rule: Rule,
    *,
    success: bool,
) -> list[tuple[str, int]]:
    """Suites and numbers of episodes that succeeded, or that did not: the first of each suite, then the second."""
    numbered = {s: dict(enumerate(of)) if isinstance(of, Sequence) else of for s, of in results.items()}
    found = {s: [n for n, r in sorted(of.items()) if succeeded(r, rule) is success] for s, of in numbered.items()}
    longest = max(map(len, found.values()), default=0)
    return [(suite, of[i]) for i in range(longest) for suite, of in found.items() if i < len(of)]


def choose_films(folder: EvaluationFolder, rule: Rule, count: int) -> list[tuple[str, int]]:
    """Suites and numbers of at most `count` episodes to film: half failures and half successes, the suites in turn, the
    first of each; where one kind is short, more of the other.
    """
    failures, successes = (_in_turn(folder.episodes, rule, success=success) for success in (False, True))
    half = max(count - count // 2, count - len(successes))
    chosen = failures[:half]
    return chosen + successes[: count - len(chosen)]


def film_outcomes(
    folder: EvaluationFolder,
    policy: Policy,
    crew: Crew,
    scenarios: Mapping[str, Sequence[Scenario]],
    horizons: Mapping[str, int],
    evaluation: EvaluationConfig,
) -> None:
    """Film a few failures and successes of an evaluation into its folder."""
    films: list[tuple[str, EpisodeResult, NDArray[np.uint8]]] = []
    for suite, number in choose_films(folder, evaluation.success, evaluation.videos):
        repeat, place = divmod(number, len(scenarios[suite]))
        ((result, frames),) = film_scenarios(
            policy, crew, suite, scenarios[suite], [place], horizons[suite], evaluation.sampling, FILM_SIZE, repeat
        )
        films.append((suite, result, frames))
    folder.write_films(films, evaluation.success, crew.spec.control_hz)
