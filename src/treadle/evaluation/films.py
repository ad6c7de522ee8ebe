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


def film(
    policy: Policy, crew: Crew, count: int, horizon: int, sampling: SamplingConfig, size: int
) -> list[tuple[EpisodeResult, NDArray[np.uint8]]]:
    """Play the first in-distribution scenarios and film every action: results, frames [length + 1, size, size, 3]."""
    scenarios = crew.scenarios("train", "evaluation", 0, count)
    return film_scenarios(policy, crew, "train", scenarios, range(len(scenarios)), horizon, sampling, size)


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
    """Play scenarios by their places in the suite and film every action, as `film` does."""
    source = ScenarioList((suite, "evaluation"), places, crew.rows, len(places), repeat=repeat)
    lanes = Lanes(crew, Session(horizon, film=size), source, policy.chunk)
    played = play(lanes, Actor(policy, Sampling(**sampling.model_dump())))
    chosen = [scenarios[place] for place in places]
    return [(played.results[scenario], np.stack(played.frames[scenario])) for scenario in chosen]


def choose_films(folder: EvaluationFolder, rule: Rule, count: int) -> list[tuple[str, int]]:
    """Suites and numbers of at most `count` episodes to film: half failures and half successes, the suites in turn, the
    first of each; where one kind is short, more of the other.
    """
    kinds: list[list[tuple[str, int]]] = []
    for wanted in (False, True):
        of_suites = [
            [(suite, n) for n, result in sorted(of.items()) if succeeded(result, rule) is wanted]
            for suite, of in folder.episodes.items()
        ]
        longest = max(map(len, of_suites), default=0)
        kinds.append([of[i] for i in range(longest) for of in of_suites if i < len(of)])
    failures, successes = kinds
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
