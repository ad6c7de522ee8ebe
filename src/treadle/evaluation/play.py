"""Episodes played to their end: what evaluation and films are made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.batch import TensorBatch
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.actor import Actor
from treadle.workers.lanes import Lanes

GREY = 127


@dataclass(slots=True)
class Played:
    """The results of episodes."""

    results: dict[Scenario, EpisodeResult] = field(default_factory=dict[Scenario, EpisodeResult])
    frames: dict[Scenario, list[NDArray[np.uint8]]] = field(default_factory=dict[Scenario, list[NDArray[np.uint8]]])
    """[size, size, 3] each, before the first action and after each, where the session films."""


class AblatedActor(Actor):
    """An actor that hides something from its policy.

    Args:
        policy: it decides.
        sampling: how actions are drawn.
        instructions: asked in place of each scenario's own instruction.
        blank: the policy sees grey images.
    """

    def __init__(
        self, policy: Policy, sampling: Sampling, instructions: Mapping[Scenario, str] | None = None, *, blank: bool
    ) -> None:
        super().__init__(policy, sampling)
        self._instructions = instructions
        self._blank = blank

    def prepare(self, seen: Observation, scenarios: Iterable[Scenario]) -> TensorBatch:
        """See `Actor.prepare`."""
        if self._instructions is not None:
            scenarios = [replace(scenario, instruction=self._instructions[scenario]) for scenario in scenarios]
        if self._blank:
            seen = Observation(np.full_like(seen.frames, GREY), seen.proprioception, seen.state)
        return super().prepare(seen, scenarios)


@torch.no_grad()
def play(
    lanes: Lanes,
    actor: Actor,
    progress: Callable[[int], None] | None = None,
    ended: Callable[[EpisodeResult], None] | None = None,
) -> Played:
    """Play everything that the lanes' source has. `progress` is called with the number of ended episodes, `ended` with
    each of them.

    Raises:
        TreadleError: What a worker raised, or SimulatorError where it died or took too long.
    """
    actor.policy.eval()
    played = Played()
    lanes.resume()
    open_lanes = sum(lanes.begin(lane) for lane in range(len(lanes)))
    while open_lanes:
        # Keep what lanes report; a lane whose episodes have all ended begins others, or closes.
        going: list[int] = []
        for arrival in lanes.ready(len(lanes)):
            for result in arrival.episodes:
                played.results[result.scenario] = result
                if ended is not None:
                    ended(result)
            for scenario, frame in arrival.frames:
                played.frames.setdefault(scenario, []).append(frame)
            if arrival.playing:
                going.append(arrival.lane)
            elif not lanes.begin(arrival.lane):
                open_lanes -= 1
        if progress is not None:
            progress(len(played.results))
        # Decide lane by lane, so that timing does not change the shapes of batches.
        for lane in going:
            rows = lanes.playing(lane)
            lanes.buffer.actions[rows] = actor.decide(lanes, rows).actions
            lanes.play(lane)
    return played
