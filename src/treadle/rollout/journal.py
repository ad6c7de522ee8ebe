"""What each slot plays and has played, so that any worker can take it up. Imports numpy, never torch.

Shapes: B slots, A action dimensions, H horizon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario
from treadle.rollout.board import Board

Episode = tuple[Scenario, NDArray[np.float32]]
"""A scenario, and the actions [n, A] that it has had."""


class Journal:
    """The episode of each slot since its start, as workers have reported it."""

    def __init__(self, slots: int, horizon: int, action_dim: int) -> None:
        self.scenarios: NDArray[np.object_] = np.full(slots, None, np.object_)
        """[B] the `Scenario` that each slot plays, None where it idles."""
        self.playing = np.zeros(slots, np.bool_)
        """[B] it plays one."""
        self._elapsed = np.zeros(slots, np.int64)
        self._episodes = np.zeros(slots, np.int64)
        self._actions = np.zeros((slots, horizon, action_dim), np.float32)

    def note(self, board: Board, first: int, stop: int, begun: Mapping[int, Scenario | None]) -> None:
        """Take down what slots `first` to `stop` have played of the actions on the board, and what they have begun."""
        rows, columns = np.nonzero(board.valid[first:stop])
        slots = rows + first
        self._actions[slots, self._elapsed[slots] + columns] = board.actions[slots, columns]
        self._elapsed[first:stop] = board.elapsed[first:stop]
        self._episodes[first:stop] = board.episodes[first:stop]
        for slot, scenario in begun.items():
            self._begin(slot, scenario)

    def state_dict(self, first: int = 0, stop: int | None = None) -> dict[str, Any]:
        """Where slots `first` to `stop` stand, as plain data: a scenario and the actions that it has had."""
        slots = range(first, len(self.scenarios) if stop is None else stop)
        return {"episodes": self._episodes[slots].tolist(), "host": [self._episode(slot) for slot in slots]}

    def load_state_dict(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Take over what `state_dict` of all slots gave."""
        self._episodes[:] = state["episodes"]
        for slot, episode in enumerate(read_episodes(state)):
            self._begin(slot, None if episode is None else episode[0])
            self._elapsed[slot] = 0
            if episode is not None:
                actions = episode[1]
                self._elapsed[slot] = count = len(actions)
                if count:
                    self._actions[slot, :count] = actions

    def _begin(self, slot: int, scenario: Scenario | None) -> None:
        self.scenarios[slot] = scenario
        self.playing[slot] = scenario is not None

    def _episode(self, slot: int) -> dict[str, Any] | None:
        scenario: Scenario | None = self.scenarios[slot]
        if scenario is None:
            return None
        return {"scenario": asdict(scenario), "actions": self._actions[slot, : self._elapsed[slot]].tolist()}


def read_episodes(state: Mapping[str, Sequence[Any]]) -> list[Episode | None]:
    """The episodes of a `Journal.state_dict`."""
    return [
        None if saved is None else (Scenario(**saved["scenario"]), np.array(saved["actions"], np.float32))
        for saved in state["host"]
    ]
