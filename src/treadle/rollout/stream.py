"""Which scenario a slot plays next, and the randomness that belongs to it.

Both depend on the run's seed and on counters alone, so that a trajectory is the same whatever the timing.
Shapes: K action tokens of a decision.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario


class ScenarioStream:
    """A stream of scenarios for each slot: shuffled passes over an enumeration, without replacement.

    `group_size` neighbouring slots play the same scenario with randomness of their own; a last group may be smaller.
    Of n groups, episode e of group g is entry `e * n + g` of the stream. The shuffle is a Feistel network, a
    permutation of the enumeration that is computed entry by entry, so that a million scenarios cost nothing to shuffle.

    Args:
        scenarios: what is played.
        slots: episodes played at the same time.
        seed: of order and noise.
        group_size: slots that share a scenario.
        partial_reset: the stream is endless; without, it hands each slot one scenario a round (`begin_round`), and the
            slot idles once its episode has ended.
    """

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        slots: int,
        seed: int,
        *,
        group_size: int = 1,
        partial_reset: bool = True,
    ) -> None:
        self._scenarios = scenarios
        self._slots = slots
        self._seed = seed
        self._group_size = group_size
        self._groups = -(-slots // group_size)
        self._bits = max(2, (len(scenarios) - 1).bit_length() + 1 & ~1)
        self._round = 0
        self.partial_reset = partial_reset
        self.episodes = np.zeros(slots, np.int64)
        """[slots] how many episodes each slot has been given."""

    def begin_round(self) -> None:
        """Without partial reset: let every slot have one more episode."""
        self._round = int(self.episodes.max()) + 1

    def __call__(self, slot: int) -> Scenario | None:
        """The next scenario of a slot; None where it has had its episode of the round."""
        if not self.partial_reset and self.episodes[slot] >= self._round:
            return None
        entry = int(self.episodes[slot]) * self._groups + slot // self._group_size
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
