"""A scripted pick-and-place that reads poses, for demonstrations: it puts the first object that a task is about on or
in the second. It solves most of the object suite and a part of the spatial one.

Lengths are in metres, angles in radians.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.errors import ConfigError
from treadle.simulators.libero.conventions import STEP, TURN
from treadle.simulators.libero.shapes import Extent, extent, half_turn
from treadle.simulators.protocol import Slots

if TYPE_CHECKING:
    from treadle.simulators.libero.scene import Place, TaskScene

Phase = Literal["approach", "close", "carry", "release"]

_GAIN = 2.0
"""The controller covers about a third of what it is asked for in a control step."""
_OPENING = 0.075
"""What is wider is held by its rim."""
_CLEARANCE = 0.06
"""Over what is below, on the way."""
_CLOSING = 8
"""Control steps that fingers take to close and settle."""
_OPENED = 12
"""Control steps after which a release that brought no success is taken for a failure."""


@dataclass(slots=True)
class Attempt:
    """Where an episode's script is."""

    phase: Phase = "approach"
    steps: int = 0
    """Control steps in this phase."""
    offset: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    """By how much the grasp is off, sideways."""
    hold: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    """From the middle of what is held to the hand, when it was closed."""

    def enter(self, phase: Phase) -> None:
        """Begin another phase, or go on with this one."""
        self.steps = self.steps + 1 if phase == self.phase else 0
        self.phase = phase


class Expert:
    """Approach, close, carry and release; a grasp that failed is tried again.

    With `miss_probability` an episode's first grasp is 2 to 4 cm off.
    """

    def __init__(
        self,
        at: "Callable[[int], tuple[TaskScene, Place]]",
        elapsed: NDArray[np.intp],
        seed: int,
        *,
        miss_probability: float = 0.0,
    ) -> None:
        """`at`: what a slot plays in; `elapsed`: [slots] control steps that each episode has had."""
        self._at = at
        self._elapsed = elapsed
        self._rng = np.random.default_rng(seed)
        self._miss_probability = miss_probability
        self._attempts = [Attempt() for _ in elapsed]

    def act(self, slots: Slots) -> NDArray[np.float32]:
        """Actions [n, 7] for the present state of each slot. An episode's first call must be at its first step.

        Raises ConfigError for a task that is not about two things.
        """
        for slot in slots[self._elapsed[slots] == 0].tolist():
            self._attempts[slot] = attempt = Attempt()
            if self._rng.random() < self._miss_probability:
                angle, distance = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(0.02, 0.04)
                attempt.offset = distance * np.array([np.cos(angle), np.sin(angle)])
        return np.stack([self._act(slot) for slot in slots.tolist()])

    def _act(self, slot: int) -> NDArray[np.float32]:
        scene, place = self._at(slot)
        if len(scene.interest) < 2:
            raise ConfigError(
                f"libero: the expert moves one thing to another; task {scene.task.name} is about "
                f"{len(scene.interest)}. Choose suite object or spatial, or tasks of that kind"
            )
        hand, closing = scene.hand(place)
        thing, goal = (extent(scene.corners(place, index)) for index in (0, 1))
        return decide(self._attempts[slot], hand, closing, thing, goal)


def decide(
    attempt: Attempt, hand: NDArray[np.float64], closing: NDArray[np.float64], thing: Extent, goal: Extent
) -> NDArray[np.float32]:
    """The next action [7]; `attempt` goes on.

    Args:
        attempt: the episode's.
        hand: [3] the point between the fingertips.
        closing: [2] unit vector along which fingers close.
        thing: what is to be moved.
        goal: where to.
    """
    grasp, direction = grasp_of(thing, hand)
    grasp[:2] += attempt.offset
    turn = half_turn(np.arctan2(direction[1], direction[0]) - np.arctan2(closing[1], closing[0]))
    target, yaw = hand, 0.0
    if attempt.phase == "approach":
        aside = float(np.linalg.norm(grasp[:2] - hand[:2]))
        ready = aside < 0.01 and abs(turn) < 0.1
        target, yaw = _approach(hand, grasp, thing.top + _CLEARANCE, aside, ready), turn
        if ready and abs(grasp[2] - hand[2]) < 0.008:
            attempt.enter("close")
            attempt.hold = hand - thing.centre
        else:
            attempt.enter("approach")
    elif attempt.phase == "close":
        attempt.enter("carry" if attempt.steps >= _CLOSING else "close")
    elif attempt.phase == "carry":
        if np.linalg.norm(hand - thing.centre - attempt.hold) > 0.04:
            attempt.offset = np.zeros(2)
            attempt.enter("approach")
        else:
            target = _carry(hand, thing, goal)
            attempt.enter("release" if target is hand else "carry")
    else:
        attempt.enter("approach" if attempt.steps >= _OPENED else "release")
    moving = attempt.phase in ("approach", "carry")
    move = np.clip(_GAIN * (target - hand) / STEP, -1, 1) if moving else np.zeros(3)
    spin = np.clip(yaw / TURN, -1, 1) if moving and abs(yaw) > 0.05 else 0.0
    return np.array([*move, 0, 0, spin, attempt.phase in ("approach", "release")], np.float32)


def grasp_of(thing: Extent, hand: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where to hold a thing [3], and along what the fingers close [2]: round its middle where it is narrow enough, else
    over the rim on the side that is nearest to the hand.
    """
    height = thing.top - thing.bottom
    depth = min(0.5 * height, 0.035)
    if thing.width <= _OPENING:
        return np.r_[thing.centre[:2], max(thing.top - depth, thing.bottom + 0.008)], thing.narrow
    side = thing.narrow if (hand[:2] - thing.centre[:2]) @ thing.narrow >= 0 else -thing.narrow
    rim = thing.centre[:2] + side * (thing.width / 2 - 0.004)
    return np.r_[rim, thing.top - min(0.02, depth)], thing.narrow


def _approach(
    hand: NDArray[np.float64], grasp: NDArray[np.float64], above: float, aside: float, ready: bool
) -> NDArray[np.float64]:
    """Down only over the thing and turned; up first, where far aside and low."""
    if ready or (aside < 0.02 and hand[2] < above - 0.03):
        return grasp
    if aside > 0.04 and hand[2] < above - 0.02:
        return np.r_[hand[:2], above + 0.02]
    return np.r_[grasp[:2], above]


def _carry(hand: NDArray[np.float64], thing: Extent, goal: Extent) -> NDArray[np.float64]:
    """Where the hand goes next with a thing: up, over the goal, down on it; the hand itself when it is there."""
    over = goal.centre[:2] - thing.centre[:2]
    aside = float(np.linalg.norm(over))
    lift = goal.top - thing.bottom
    if aside > 0.02:
        height = hand[2] + lift + _CLEARANCE
        # Sideways only once above the goal's top.
        return np.r_[hand[:2] + (over if lift < -_CLEARANCE / 2 else 0), height]
    if lift > -0.015:
        return hand
    return np.r_[hand[:2] + over, hand[2] + lift + 0.005]
