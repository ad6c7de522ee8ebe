"""The actions of a data set, played again in the simulator that it is of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.data.demonstrations import Demonstrations
from treadle.data.scenario import Scenario, Split
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError
from treadle.rollout.sources import ScenarioList
from treadle.supervised.checks import check_dimensions
from treadle.supervised.findings import Finding
from treadle.supervised.tracks import Moment, play_tracks
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew

_OFF = 0.02
"""Share of a dimension's range that proprioception may be off."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it."""

    episodes: int
    successes: int
    findings: list[Finding]


def replay(
    demonstrations: Demonstrations,
    config: SimulatorConfig,
    episodes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Play the recorded actions of the first episodes, from their scenarios' starts; no policy decides. Findings are
    episodes whose success, or whose proprioception on the way, is not what was recorded.

    Raises ConfigError for a data set without scenarios, or of another simulator.
    """
    names = demonstrations.scenarios
    if names is None:
        raise ConfigError(
            "--replay: the data set names no scenarios (column 'scenario' of meta/episodes), so nobody knows where its "
            "episodes begin; `treadle record` and `treadle sft` write them"
        )
    count = min(episodes, len(names))
    findings: list[Finding] = []
    successes: list[bool] = []
    with Crew(plan_crew(config, CollectionConfig(), slots=min(config.slots, count), accelerated=False)) as crew:
        check_dimensions(demonstrations.actions, crew.spec.actions)
        for place, numbers in _by_enumeration(names[:count], crew.spec.name).items():
            suite, split = place
            scenarios = {number: crew.scenarios(suite, split, number, number + 1)[0] for number in numbers}
            rows = {scenarios[number]: _rows(demonstrations, episode) for number, episode in numbers.items()}
            episode_of = {scenarios[number]: episode for number, episode in numbers.items()}
            longest = max(len(part) for part in rows.values())
            source = ScenarioList(place, list(numbers), crew.rows)
            lanes = Lanes(crew, Session(longest), source, chunk=1)

            def decide(lanes: Lanes, lane: int, rows: dict[Scenario, NDArray[np.intp]] = rows) -> None:
                playing = lanes.playing(lane)
                slots = np.arange(playing.start, playing.stop) if isinstance(playing, slice) else playing
                for slot, step in zip(slots.tolist(), lanes.elapsed(slots).tolist(), strict=True):
                    scenario: Any = lanes.scenarios[slot]
                    part = rows[scenario]
                    action = demonstrations.actions[part[min(step, len(part) - 1)]].copy()
                    if step >= len(part):
                        action[[dimension.kind == "relative" for dimension in crew.spec.actions]] = 0
                    lanes.buffer.actions[slot, 0] = action

            order = [scenarios[number] for number in numbers]

            def ended(
                result: EpisodeResult,
                track: list[Moment],
                rows: dict[Scenario, NDArray[np.intp]] = rows,
                episode_of: dict[Scenario, int] = episode_of,
            ) -> None:
                scenario, success = result.scenario, result.success_once
                successes.append(success)
                findings.extend(_compare(demonstrations, episode_of[scenario], rows[scenario], success, track))
                if progress is not None:
                    progress(len(successes), count)

            play_tracks(lanes, order, ended, decide)
    return Replayed(len(successes), sum(successes), findings)


def _compare(
    demonstrations: Demonstrations, episode: int, rows: NDArray[np.intp], success: bool, track: list[Moment]
) -> Iterator[Finding]:
    """Findings of one episode."""
    told = demonstrations.success
    if told is not None and bool(told[episode]) != success:
        words = {True: "a success", False: "a failure"}
        said = f"recorded as {words[bool(told[episode])]}, and {words[success]} when its actions are played again"
        yield Finding("replay", False, said, None, episode)
    state = demonstrations.state
    if not state.shape[1] or state.shape[1] != len(track[0].proprioception):
        return
    margin = _OFF * (state.max(axis=0) - state.min(axis=0)) + 1e-4
    for frame, (row, moment) in enumerate(zip(rows.tolist(), track, strict=False)):
        off = np.abs(moment.proprioception - state[row])
        if (off > margin).any():
            place = int((off - margin).argmax())
            said = (
                f"proprioception {place} is {moment.proprioception[place]:g} when the actions are played again, "
                f"and was recorded as {state[row, place]:g}"
            )
            yield Finding("replay", False, said, None, episode, frame)
            return


def _rows(demonstrations: Demonstrations, episode: int) -> NDArray[np.intp]:
    return np.flatnonzero(demonstrations.episode_index == episode)


def _by_enumeration(names: list[str], simulator: str) -> dict[tuple[str, Split], dict[int, int]]:
    """Episodes by suite and split, and in each by the scenario's number. Raises ConfigError."""
    found: dict[tuple[str, Split], dict[int, int]] = {}
    for episode, name in enumerate(names):
        parts = name.split("/")
        if len(parts) < 4 or parts[-2] not in ("train", "evaluation") or not parts[-1].isdecimal():
            raise ConfigError(f"--replay: scenario {name!r:.120} of episode {episode} is no name of a scenario")
        if parts[0] != simulator:
            raise ConfigError(
                f"--replay: scenario {name!r:.120} of episode {episode} is of simulator {parts[0]!r}, not of "
                f"{simulator!r}; use simulator.name={parts[0]}"
            )
        split: Split = "train" if parts[-2] == "train" else "evaluation"
        found.setdefault(("/".join(parts[1:-2]), split), {})[int(parts[-1])] = episode
    return found
