"""What each slot plays and has played, so that any worker can take over. Imports numpy, never torch.

Shapes: B slots, A action dimensions.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario
from treadle.workers.buffer import SharedBuffer
from treadle.workers.messages import Entry


class Assignment(NamedTuple):
    """A scenario that a slot was given to play."""

    entry: Entry
    key: int
    """Of the episode's noise, 64 bits."""


class EpisodeLog:
    """The episode of each slot since its start, as workers have reported it, and the scenarios that follow."""

    def __init__(self, slots: int, horizon: int, action_dim: int) -> None:
        self.scenarios: NDArray[np.object_] = np.full(slots, None, np.object_)
        """[B] the `Scenario` that each slot plays, None where it idles."""
        self.playing = np.zeros(slots, np.bool_)
        """[B] whether it plays one."""
        self.keys = np.zeros(slots, np.uint64)
        """[B] key of the noise of its episode."""
        self.elapsed = np.zeros(slots, np.int64)
        """[B] control steps of its episode so far."""
        self.upcoming: list[deque[Assignment]] = [deque() for _ in range(slots)]
        """Scenarios that each slot was given and has not begun."""
        self._actions = np.zeros((slots, horizon, action_dim), np.float32)

    def note(self, buffer: SharedBuffer, first: int, stop: int, begun: Mapping[int, Scenario | None]) -> None:
        """Note the actions on the buffer that slots `first` to `stop` have played, and the scenarios they began."""
        rows, columns = np.nonzero(buffer.valid[first:stop])
        slots = rows + first
        self._actions[slots, self.elapsed[slots] + columns] = buffer.actions[slots, columns]
        self.elapsed[first:stop] = buffer.elapsed[first:stop]
        for slot, scenario in begun.items():
            self.scenarios[slot] = scenario
            self.playing[slot] = scenario is not None
            if scenario is not None:
                self.keys[slot] = self.upcoming[slot].popleft().key

    def episodes(self, first: int, stop: int) -> list[tuple[Scenario, NDArray[np.float32]] | None]:
        """The scenario of each slot from `first` to `stop`, with the actions [n, A] that it has had."""
        return [
            (self.scenarios[slot], self._actions[slot, : self.elapsed[slot]].copy()) if self.playing[slot] else None
            for slot in range(first, stop)
        ]

    def entries(self, first: int, stop: int) -> dict[int, list[Entry]]:
        """The scenarios that slots `first` to `stop` were given and have not begun."""
        return {slot: [entry for entry, _ in self.upcoming[slot]] for slot in range(first, stop) if self.upcoming[slot]}

    def state_dict(self) -> dict[str, Any]:
        """Where every slot stands, as plain data."""
        episodes = self.episodes(0, len(self.scenarios))
        return {
            "episodes": [
                None
                if episode is None
                else {"scenario": asdict(episode[0]), "actions": episode[1].tolist(), "key": int(self.keys[slot])}
                for slot, episode in enumerate(episodes)
            ],
            "upcoming": [[(*entry, key) for entry, key in queue] for queue in self.upcoming],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises ValueError for one that does not fit: other slots, longer episodes."""
        counts = (len(state["episodes"]), len(state["upcoming"]), len(self.scenarios))
        if len(set(counts)) > 1:
            raise ValueError(f"episodes of {counts[0]} slots, scenarios of {counts[1]}; there are {counts[2]} slots")
        for slot, saved in enumerate(state["episodes"]):
            self.playing[slot] = saved is not None
            self.scenarios[slot] = None if saved is None else Scenario(**saved["scenario"])
            self.elapsed[slot] = 0 if saved is None else len(saved["actions"])
            if saved is not None:
                self.keys[slot] = saved["key"]
                actions = np.array(saved["actions"], np.float32).reshape(-1, self._actions.shape[2])
                self._actions[slot, : self.elapsed[slot]] = actions
        self.upcoming = [
            deque(Assignment(Entry(suite, split, index), key) for suite, split, index, key in queue)
            for queue in state["upcoming"]
        ]
