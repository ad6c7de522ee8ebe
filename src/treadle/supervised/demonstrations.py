"""Demonstrations: played by a simulator's scripted expert, and cut into decisions for imitation.

Shapes: N frames of all episodes, C actions of a chunk, A action dimensions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treadle.config.schema import DemonstrationConfig
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError
from treadle.rollout.sources import ScenarioList
from treadle.simulators.protocol import ActionDimension
from treadle.supervised.checks import check_dimensions
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import ExpertSettings, Session

Moment = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]
"""Frames [cameras, H, W, 3], proprioception [P], and the action [A] taken there."""


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
    spec = crew.spec
    scenarios = crew.scenarios("train", "train", 0, config.episodes)
    expert = ExpertSettings(seed, config.miss_probability, config.jitter, config.seed)
    source = ScenarioList(("train", "train"), range(len(scenarios)), crew.rows)
    lanes = Lanes(crew, Session(spec.horizon, expert=expert), source, chunk=1)
    tracks, results = _play(lanes, lambda done: progress(done, len(scenarios)))
    with DemonstrationWriter(
        directory,
        fps=spec.control_hz,
        cameras=spec.cameras,
        height=spec.height,
        width=spec.width,
        action_names=[dimension.name for dimension in spec.actions],
        state_names=[f"p{i}" for i in range(spec.proprioception_dim)],
        robot_type=spec.name,
    ) as writer:
        for scenario in scenarios:
            if results[scenario].success_once:
                frames, proprioception, actions = (np.stack(x) for x in zip(*tracks[scenario], strict=True))
                writer.add_episode(frames, proprioception, actions, scenario.instruction, True, scenario.id)
    return sum(result.success_once for result in results.values()) / len(results)


def _play(
    lanes: Lanes, progress: Callable[[int], None]
) -> tuple[dict[Scenario, list[Moment]], dict[Scenario, EpisodeResult]]:
    """Play all that there is: the moments of each episode, and its result."""
    buffer, tracks, results = lanes.buffer, dict[Scenario, list[Moment]](), dict[Scenario, EpisodeResult]()
    before: dict[int, tuple[Scenario, NDArray[np.uint8], NDArray[np.float32]]] = {}
    """By slot: what was seen when the expert was asked."""
    open_lanes = sum(lanes.begin(lane) for lane in range(len(lanes)))
    while open_lanes:
        for arrival in lanes.ready(len(lanes)):
            results |= {result.scenario: result for result in arrival.episodes}
            rows = lanes.rows[arrival.lane]
            # What came of the action before: only now is it known which one the expert took.
            for slot in range(rows.start, rows.stop):
                if slot in before and buffer.valid[slot, 0]:
                    scenario, frames, proprioception = before.pop(slot)
                    tracks.setdefault(scenario, []).append((frames, proprioception, buffer.actions[slot, 0].copy()))
                scenario, seen = lanes.scenarios[slot], buffer.observation
                if scenario is not None:
                    before[slot] = scenario, seen.frames[slot].copy(), seen.proprioception[slot].copy()
            if arrival.playing:
                lanes.play(arrival.lane)
            elif not lanes.begin(arrival.lane):
                open_lanes -= 1
        progress(len(results))
    return tracks, results


def cut_chunks(
    actions: NDArray[np.float32], episode: NDArray[np.int64], chunk: int, dimensions: Sequence[ActionDimension]
) -> NDArray[np.float32]:
    """The chunk [N, C, A] that starts at each frame of `actions` [N, A].

    Past the end of an episode the robot stands still: motions are 0, targets and grippers stay what they were
    (Octo's `chunk_act_obs` with its mask of absolute actions). Raises ConfigError for actions of other dimensions than
    the simulator's.
    """
    check_dimensions(actions, dimensions)
    count = len(actions)
    rows = np.arange(count)[:, None] + np.arange(chunk)
    last = np.searchsorted(episode, episode, side="right") - 1
    over = rows > last[:, None]
    chunks = actions[np.minimum(rows, last[:, None])]
    chunks[over[..., None] & [dimension.kind == "relative" for dimension in dimensions]] = 0
    return chunks


def learnable(episode: NDArray[np.int64], chunk: int, dimensions: Sequence[ActionDimension]) -> NDArray[np.int64]:
    """The frames whose chunk is learned, of those whose episodes are `episode` [N].

    Motions and grippers are known past an episode's end, so all are. What a target would have been is not known, so
    with targets only chunks that fit into their episode are, as in OpenVLA-OFT. Raises ConfigError where none does.
    """
    rows = np.arange(len(episode))
    if all(dimension.kind != "absolute" for dimension in dimensions):
        return rows
    last = np.searchsorted(episode, episode, side="right") - 1
    fitting = rows[rows + chunk - 1 <= last]
    if not len(fitting):
        raise ConfigError(
            f"dataset: its longest episode has {np.bincount(episode).max()} frames, a chunk of the policy {chunk} "
            "actions; targets past the end of an episode are not known, so there is nothing to learn. Take longer "
            "episodes or a policy with a shorter chunk, or declare motions as 'relative' if the actions are motions"
        )
    return fitting
