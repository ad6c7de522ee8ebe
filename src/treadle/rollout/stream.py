"""Which scenario a slot plays next, and the randomness that belongs to it.

Both depend on the run's seed and on counters alone, so that a trajectory is the same whatever the timing.
Shapes: K action tokens of a decision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario


class ScenarioStream:
    """An endless stream of scenarios for each slot: shuffled passes over an enumeration, without replacement.

    Episode e of slot b is entry `e * slots + b` of the stream. The shuffle is a Feistel network, a permutation of the
    enumeration that is computed entry by entry, so that a million scenarios cost nothing to shuffle.
    """

    def __init__(self, scenarios: Sequence[Scenario], slots: int, seed: int) -> None:
        self._scenarios = scenarios
        self._slots = slots
        self._seed = seed
        self._bits = max(2, (len(scenarios) - 1).bit_length() + 1 & ~1)
        self.episodes = np.zeros(slots, np.int64)
        """[slots] how many episodes each slot has been given."""

    def __call__(self, slot: int) -> Scenario:
        """The next scenario of a slot."""
        entry = int(self.episodes[slot]) * self._slots + slot
        self.episodes[slot] += 1
        lap, position = divmod(entry, len(self._scenarios))
        return self._scenarios[self._shuffled(position, lap)]

    def noise(self, slot: int, decisions: int, tokens: int) -> NDArray[np.float32]:
        """[decisions, K] uniform numbers in [0, 1) for the slot's current episode."""
        entry = (int(self.episodes[slot]) - 1) * self._slots + slot
        generator = np.random.Generator(np.random.Philox(key=[self._seed, entry]))
        return generator.random((decisions, tokens), np.float32)

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
            if position < len(self._scenarios):
                return position
