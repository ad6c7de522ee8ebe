"""Episodes played one action at a time, with everything that was seen and done: what data sets are written of."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.rerun_writer import RerunWriter
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.rollout.actor import Actor
from treadle.simulators.protocol import SimulatorSpec
from treadle.workers.lanes import Lanes


class Moment(NamedTuple):
    """What was seen at a control step, what was done there, and what came of it."""

    frames: NDArray[np.uint8]
    """[cameras, H, W, 3]"""
    proprioception: NDArray[np.float32]
    """[P]"""
    action: NDArray[np.float32]
    """[A]"""
    reward: np.float32


Ended = Callable[[EpisodeResult, list[Moment]], None]
Decide = Callable[[Lanes, int], None]
"""It puts the next actions of a lane on the buffer."""


class ChunkPlayer:
    """Lets a policy decide for lanes of single actions: a decision is asked for when the one before it is played."""

    def __init__(self, actor: Actor, slots: int, action_dim: int) -> None:
        self._actor, self._chunk = actor, actor.policy.chunk
        self._decided = np.zeros((slots, self._chunk, action_dim), np.float32)

    def __call__(self, lanes: Lanes, lane: int) -> None:
        """See `Decide`."""
        rows = lanes.playing(lane)
        slots = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        place = lanes.elapsed(slots) % self._chunk
        if len(due := slots[place == 0]):
            self._decided[due] = self._actor.decide(lanes, due).actions
        lanes.buffer.actions[slots, 0] = self._decided[slots, place]


def play_tracks(lanes: Lanes, order: Sequence[Scenario], ended: Ended, decide: Decide | None = None) -> None:
    """Play all that the lanes' source has. `ended` is called with each episode in the given order, so that results do
    not depend on timing; an episode is kept until those before it have ended. Without `decide` the lanes' expert acts.

    Raises:
        TreadleError: What a worker raised, or SimulatorError where it died or took too long.
    """
    buffer, tracks, waiting = lanes.buffer, dict[Scenario, list[Moment]](), dict[Scenario, EpisodeResult]()
    before: dict[int, tuple[Scenario, NDArray[np.uint8], NDArray[np.float32]]] = {}
    """By slot: what was seen when an action was asked for."""
    left = iter(order)
    due = next(left, None)
    open_lanes = sum(lanes.begin(lane) for lane in range(len(lanes)))
    while open_lanes:
        for arrival in lanes.ready(len(lanes)):
            rows = lanes.rows[arrival.lane]
            # What came of the action before: only now is it known which one an expert took.
            for slot in range(rows.start, rows.stop):
                if slot in before and buffer.valid[slot, 0]:
                    scenario, frames, proprioception = before.pop(slot)
                    moment = Moment(frames, proprioception, buffer.actions[slot, 0].copy(), buffer.reward[slot, 0])
                    tracks.setdefault(scenario, []).append(moment)
                scenario, seen = lanes.scenarios[slot], buffer.observation
                if scenario is not None:
                    before[slot] = scenario, seen.frames[slot].copy(), seen.proprioception[slot].copy()
            waiting |= {result.scenario: result for result in arrival.episodes}
            while due is not None and due in waiting:
                ended(waiting.pop(due), tracks.pop(due))
                due = next(left, None)
            if arrival.playing:
                if decide is not None:
                    decide(lanes, arrival.lane)
                lanes.play(arrival.lane)
            elif not lanes.begin(arrival.lane):
                open_lanes -= 1


def open_writer(directory: Path, spec: SimulatorSpec) -> DemonstrationWriter:
    """A data set of what a simulator shows and takes. Raises OutputError."""
    return DemonstrationWriter(
        directory,
        fps=spec.control_hz,
        cameras=spec.cameras,
        height=spec.height,
        width=spec.width,
        action_names=[dimension.name for dimension in spec.actions],
        state_names=[f"p{i}" for i in range(spec.proprioception_dim)],
        robot_type=spec.name,
    )


def write_track(writer: DemonstrationWriter, scenario: Scenario, success: bool, track: Sequence[Moment]) -> None:
    """Append an episode to a data set. Raises OutputError."""
    frames, proprioception, actions, _ = _stack(track)
    writer.add_episode(frames, proprioception, actions, scenario.instruction, success, scenario.id)


def show_track(writer: RerunWriter, scenario: Scenario, success: bool, track: Sequence[Moment]) -> None:
    """Write an episode for Rerun's viewer. Raises OutputError."""
    writer.add_episode(*_stack(track), scenario.instruction, success, scenario.id)


def _stack(
    track: Sequence[Moment],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Frames [T, cameras, H, W, 3], proprioception [T, P], actions [T, A] and rewards [T]."""
    frames, proprioception, actions, rewards = zip(*track, strict=True)
    return np.stack(frames), np.stack(proprioception), np.stack(actions), np.stack(rewards)
