"""Demonstrations that a simulator's scripted expert plays."""

from collections.abc import Callable
from pathlib import Path

from treadle.config.supervised import DemonstrationConfig
from treadle.data.step import EpisodeResult
from treadle.rollout.sources import ScenarioList
from treadle.supervised.tracks import Moment, open_writer, play_tracks, write_track
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import ExpertSettings, Session


def record_demonstrations(
    crew: Crew,
    config: DemonstrationConfig,
    seed: int,
    directory: Path,
    progress: Callable[[int, int], None],
) -> float:
    """Let the expert play the first training scenarios, and write its successes as a LeRobot dataset; returns its
    success rate. Episodes are written in the order of their scenarios.

    Raises ConfigError where the simulator brings no expert, or has no translation for the jitter.
    """
    scenarios = crew.scenarios("train", "train", 0, config.episodes)
    expert = ExpertSettings(seed, config.miss_probability, config.jitter, config.seed)
    source = ScenarioList(("train", "train"), range(len(scenarios)), crew.rows)
    lanes = Lanes(crew, Session(crew.spec.horizon, expert=expert), source, chunk=1)
    results: list[EpisodeResult] = []
    with open_writer(directory, crew.spec) as writer:

        def ended(result: EpisodeResult, track: list[Moment]) -> None:
            results.append(result)
            if result.success_once:
                write_track(writer, result.scenario, True, track)
            progress(len(results), len(scenarios))

        play_tracks(lanes, scenarios, ended)
    return sum(result.success_once for result in results) / len(results)
