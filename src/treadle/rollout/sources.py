"""Which scenario a slot plays next, and the noise that belongs to it.

Both depend only on the run's seed and on counters, so timing cannot change a trajectory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from treadle.data.noise import noise_key
from treadle.data.scenario import Split
from treadle.workers.episode_log import Assignment
from treadle.workers.messages import Entry
from treadle.workers.partition import cut

EVALUATION_NOISE = 0x65766C
"""Keeps the noise of evaluation apart from that of training."""


class ScenarioStream:
    """A stream of scenarios for each slot: shuffled passes over an enumeration, without replacement.

    `group_size` neighbouring slots play the same scenario with noise of their own; a last group may be smaller.
    Of n groups, episode e of group g is entry `e * n + g` of the stream. The shuffle is a Feistel network, a
    permutation of the enumeration that is computed entry by entry, so that a million scenarios cost nothing to shuffle.

    Several players share one stream: each has neighbouring slots, and gives the slots of the others nothing.

    Args:
        count: scenarios of the enumeration.
        slots: episodes played at the same time, by all players.
        seed: of order and noise.
        group_size: slots that share a scenario.
        partial_reset: True makes the stream endless. False gives each slot one scenario per round (`begin_round`); a
            slot idles once its episode has ended.
        place: suite and split of the enumeration.
        own: this player's slots; all by default.
    """

    def __init__(
        self,
        count: int,
        slots: int,
        seed: int,
        *,
        group_size: int = 1,
        partial_reset: bool = True,
        place: tuple[str, Split] = ("train", "train"),
        own: slice | None = None,
    ) -> None:
        own = own or slice(0, slots)
        self._count = count
        self._slots = slots
        self._seed = seed
        self._group_size = group_size
        self._groups = -(-slots // group_size)
        self._bits = max(2, (count - 1).bit_length() + 1 & ~1)
        self._place = place
        self._round = 0
        self._first = own.start
        self._given = np.zeros(own.stop - own.start, np.int64)
        """[own slots] how many episodes each slot has been given."""
        self.partial_reset = partial_reset
        self.ahead = int(partial_reset)

    def begin_round(self) -> None:
        """Without partial reset: let every slot have one more episode."""
        self._round = int(self._given.max()) + 1

    def next(self, slot: int) -> Assignment | None:
        """The next scenario of an own slot, from 0; None where it has had its episode of the round."""
        given = int(self._given[slot])
        if not self.partial_reset and given >= self._round:
            return None
        self._given[slot] += 1
        number = self._first + slot
        lap, position = divmod(given * self._groups + number // self._group_size, self._count)
        (key,) = noise_key(self._seed, given * self._slots + number)
        return Assignment(Entry(*self._place, self._shuffled(position, lap)), int(key))

    def state_dict(self) -> dict[str, Any]:
        """See `ScenarioSource.state_dict`."""
        return {"given": self._given.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ScenarioSource.load_state_dict`."""
        if len(state["given"]) != len(self._given):
            raise ValueError(f"episodes of {len(state['given'])} slots; there are {len(self._given)} slots")
        self._given[:] = state["given"]

    def _shuffled(self, position: int, lap: int) -> int:
        half = self._bits // 2
        mask = (1 << half) - 1
        while True:
            left, right = position >> half, position & mask
            for turn in range(4):
                digest = (
                    right * 0x9E3779B1 + self._seed * 0x85EBCA77 + lap * 0xC2B2AE3D + turn * 0x27D4EB2F
                ) & 0xFFFFFFFF
                digest = ((digest ^ (digest >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
                left, right = right, left ^ ((digest ^ (digest >> 13)) & mask)
            position = (left << half) | right
            if position < self._count:
                return position


class ScenarioList:
    """A list of scenarios, each played once. Every lane has its share, and the lane's slots take from it in turn.

    Noise belongs to the scenario, so results do not depend on the slot that plays it.

    Args:
        place: suite and split of the enumeration.
        indices: the scenarios that are played.
        lanes: the slots of each lane.
        slots: how many slots play at the same time at most.
        repeat: which repeat of the scenarios it is; each has noise of its own.
    """

    ahead = 0

    def __init__(
        self,
        place: tuple[str, Split],
        indices: Sequence[int],
        lanes: Sequence[slice],
        slots: int | None = None,
        *,
        repeat: int = 0,
    ) -> None:
        self._place = place
        self._noise = (EVALUATION_NOISE,) if repeat == 0 else (EVALUATION_NOISE, repeat)
        self._left = [list(reversed(indices[lane :: len(lanes)])) for lane in range(len(lanes))]
        most = sum(rows.stop - rows.start for rows in lanes) if slots is None else max(slots, len(lanes))
        self._lane = {
            slot: lane
            for lane, (rows, (first, stop)) in enumerate(zip(lanes, cut(0, most, len(lanes)), strict=True))
            for slot in range(rows.start, min(rows.stop, rows.start + stop - first))
        }
        """The lane of each slot that takes part."""

    def next(self, slot: int) -> Assignment | None:
        """See `ScenarioSource.next`."""
        lane = self._lane.get(slot)
        if lane is None or not self._left[lane]:
            return None
        index = self._left[lane].pop()
        return Assignment(Entry(*self._place, index), int(noise_key(*self._noise, index)[0]))

    def state_dict(self) -> dict[str, Any]:
        """See `ScenarioSource.state_dict`."""
        return {"left": [list(left) for left in self._left]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `ScenarioSource.load_state_dict`."""
        self._left = [list(left) for left in state["left"]]
