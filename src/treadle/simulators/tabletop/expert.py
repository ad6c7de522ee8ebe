"""A scripted expert that reads privileged state, for demonstrations and for checking that scenes can be solved."""

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.protocol import Slots
from treadle.simulators.tabletop import task
from treadle.simulators.tabletop.scene import OBJECT_QPOS, PLATE_THICKNESS
from treadle.simulators.tabletop.task import TRANSLATION_LIMIT, YAW_LIMIT

_APPROACH, _CLOSE, _CARRY, _RELEASE = range(4)
_HOVER = 0.066
"""Height at which open fingers pass over objects."""
_CARRY_HEIGHT = 0.075


class Expert:
    """Approach, close, carry, lower and release; a grasp that failed or slipped is tried again.

    With `miss_probability` an episode holds one mistake: a grasp 1.5-4 cm off, or a drop on the way.
    """

    def __init__(self, records: task.Records, seed: int, *, miss_probability: float = 0.0) -> None:
        self._records = records
        self._rng = np.random.default_rng(seed)
        self._miss_probability = miss_probability
        slots = len(records.step)
        self._phase = np.zeros(slots, np.intp)
        self._count = np.zeros(slots, np.intp)
        self._stalled = np.zeros(slots, np.intp)
        self._offset = np.zeros((slots, 2))
        self._drop = np.full(slots, -1, np.intp)

    def act(self, slots: Slots) -> NDArray[np.float32]:
        """Actions [n, 7] for the present state of each slot. An episode's first call must be at its first step."""
        records = self._records
        self._start(slots[records.step[slots] == 0])
        goal, tool = records.goal[slots], records.qpos[slots, :3]
        named = records.qpos[slots, OBJECT_QPOS : OBJECT_QPOS + 3]
        held = task.held(records, slots)
        phase, count = self._phase[slots], self._count[slots] + 1

        grasp = np.c_[named[:, :2] + self._offset[slots], np.maximum(named[:, 2], 0.018)]
        there = (phase == _APPROACH) & (np.abs(goal[:, :3] - grasp).max(1) < 0.006)
        ready = there & (np.abs(tool - grasp).max(1) < 0.009)
        # A finger that stands on an object never arrives.
        stalled = self._stalled[slots] = np.where(there & ~ready, self._stalled[slots] + 1, 0)
        retry = ((phase == _CLOSE) & (count > 3)) | ((phase == _CARRY) & ~held) | ((phase == _RELEASE) & (count > 4))
        retry |= stalled > 2
        over = np.c_[goal[:, :2] - tool[:, :2] + named[:, :2], named[:, 2] - tool[:, 2]]
        plate = records.plates[slots, 0]
        rest = PLATE_THICKNESS + records.half[slots] + 0.004 - over[:, 2]
        error = np.abs(over[:, :2] - plate).max(1)
        arrived = (error < 0.015) & (np.abs(tool[:, :2] - goal[:, :2]).max(1) < 0.012) & (goal[:, 2] < rest + 0.006)
        following = np.select(
            [ready, (phase == _CLOSE) & held & (count > 1), (phase == _CARRY) & held & arrived, retry],
            [_CLOSE, _CARRY, _RELEASE, _APPROACH],
            phase,
        )
        self._offset[slots[retry]] = 0
        drop = (following == _CARRY) & (self._drop[slots] >= 0)
        self._drop[slots[drop]] -= 1
        dropped = drop & (self._drop[slots] < 0)
        count = np.where(following == phase, count, 0)

        target = goal[:, :3].copy()
        far = np.abs(goal[:, :2] - grasp[:, :2]).max(1)
        approach = grasp.copy()
        approach[:, 2] = np.where(
            far > 0.031, _HOVER, np.where(far > 0.012, np.minimum(_HOVER, goal[:, 2]), grasp[:, 2])
        )
        # Rise before moving sideways from a failed grasp, so that the fingers do not sweep the object away.
        rise = (goal[:, 2] < _HOVER - 0.015) & (far > 0.014)
        approach[rise, :2], approach[rise, 2] = goal[rise, :2], _HOVER
        carry = np.c_[plate - (over[:, :2] - goal[:, :2]), np.where(error < 0.031, rest, _CARRY_HEIGHT)]
        target = np.where((following == _APPROACH)[:, None], approach, target)
        target = np.where((following == _CARRY)[:, None], carry, target)

        delta = np.clip(target - goal[:, :3], -TRANSLATION_LIMIT, TRANSLATION_LIMIT)
        yaw = np.clip(-goal[:, 3], -YAW_LIMIT, YAW_LIMIT)
        opened = (following == _APPROACH) | (following == _RELEASE) | dropped
        self._phase[slots], self._count[slots] = following, count
        zero = np.zeros(len(slots))
        return np.column_stack([delta, zero, zero, yaw, opened]).astype(np.float32)

    def _start(self, slots: Slots) -> None:
        self._phase[slots] = _APPROACH
        self._count[slots] = self._stalled[slots] = 0
        self._offset[slots] = 0
        self._drop[slots] = -1
        if not self._miss_probability:
            return
        for slot in slots[self._rng.random(len(slots)) < self._miss_probability]:
            if self._rng.random() < 0.7:
                angle, distance = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(0.015, 0.04)
                self._offset[slot] = distance * np.cos(angle), distance * np.sin(angle)
            else:
                self._drop[slot] = self._rng.integers(1, 4)
