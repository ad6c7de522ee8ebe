"""Scripted experts: proportional controllers on the tool's pose that read privileged state.

Shapes: n rows, each a slot.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import SimulatorError
from treadle.simulators.protocol import Slots

if TYPE_CHECKING:
    from treadle.simulators.maniskill.engine import Engine

Vectors = NDArray[np.float64]

APPROACH, DESCEND, CLOSE, CARRY, RELEASE = range(5)
_STEP = 0.05
"""Metres that one action moves the tool at most."""
_TURN = 0.1
"""Radians that one action turns the tool at most."""


@dataclass(slots=True)
class Sight:
    """What an expert needs to know of one slot, in metres in the world's frame."""

    tool: Vectors
    """[3]"""
    tool_yaw: float
    """Direction in which the fingers close, radians."""
    thing: Vectors
    """[3] what is to be grasped or pushed."""
    thing_yaw: float
    """Direction of one of its faces, radians."""
    goal: Vectors
    """[3] where the thing's centre is to come to."""
    held: bool


@dataclass(frozen=True, slots=True)
class Skill:
    """How an expert reads one task, and how it handles the thing."""

    thing: str
    """What is to be grasped or pushed, by its name in ManiSkill's environment."""
    goal: str
    """Where to, likewise."""
    above: float = 0.0
    """Metres from the middle of the goal up to where the thing's centre is to come to."""
    release: bool = False
    """Let go at the goal; else hold the thing there."""
    push: bool = False
    """Push with closed fingers, along the line to the goal, instead of grasping."""


def decide(sight: Sight, phase: int, waited: int, skill: Skill) -> tuple[int, NDArray[np.float32]]:
    """The next phase and action [7] in metres, radians and gripper opening."""
    if skill.push:
        return _push(sight, phase)
    over = sight.thing + _up(0.08)
    level = np.linalg.norm(sight.tool[:2] - sight.thing[:2])
    turn = _quarter(sight.thing_yaw - sight.tool_yaw)
    if phase == APPROACH and level < 0.01 and abs(turn) < 0.1:
        phase = DESCEND
    elif phase == DESCEND and level > 0.03:
        phase = APPROACH
    elif phase == DESCEND and np.linalg.norm(sight.tool - sight.thing) < 0.008:
        phase, waited = CLOSE, 0
    elif phase == CLOSE and waited >= 2:
        phase = CARRY if sight.held else APPROACH
    elif phase == CARRY and not sight.held:
        phase = APPROACH
    elif phase == CARRY and skill.release and np.linalg.norm(sight.goal - sight.thing) < 0.008:
        phase, waited = RELEASE, 0
    elif phase == RELEASE and waited >= 8:
        phase = APPROACH
    # The tool holds the thing a little off its centre; carry the thing, not the tool.
    off = sight.goal - sight.thing
    target = {
        APPROACH: over,
        DESCEND: sight.thing,
        CLOSE: sight.tool,
        CARRY: sight.tool + _carry(off, sight.thing, sight.goal, skill.release),
        RELEASE: sight.tool if waited < 2 else sight.tool + _up(0.02),
    }[phase]
    opened = phase in (APPROACH, DESCEND, RELEASE)
    turn = turn if phase in (APPROACH, DESCEND) else 0.0
    return phase, _action(target - sight.tool, turn, opened)


class Expert:
    """Solves the tasks in `SKILLS`. With `miss_probability` an episode holds one mistake: a grasp 2-4 cm off."""

    def __init__(
        self,
        task: str,
        engine: "Callable[[int], tuple[Engine, int]]",
        elapsed: NDArray[np.intp],
        seed: int,
        *,
        miss_probability: float = 0.0,
    ) -> None:
        """`engine`: what plays a slot, and its row there; `elapsed`: [slots] control steps that each episode has had.

        Raises SimulatorError for a task that has no expert.
        """
        if task not in SKILLS:
            raise SimulatorError(
                f"maniskill has no scripted expert of {task}; there are experts of {', '.join(SKILLS)}"
            )
        self._engine = engine
        self._elapsed = elapsed
        self._skill = SKILLS[task]
        self._rng = np.random.default_rng(seed)
        self._miss_probability = miss_probability
        self._phase = np.zeros(len(elapsed), np.intp)
        self._waited = np.zeros(len(elapsed), np.intp)
        self._offset = np.zeros((len(elapsed), 3))

    def act(self, slots: Slots) -> NDArray[np.float32]:
        """Actions [n, 7] for the present state of each slot. An episode's first call must be at its first step."""
        actions = np.zeros((len(slots), 7), np.float32)
        for place, slot in enumerate(slots.tolist()):
            if self._elapsed[slot] == 0:
                self._start(slot)
            sight = self._look(slot)
            sight.thing = sight.thing + self._offset[slot]
            phase, actions[place] = decide(sight, int(self._phase[slot]), int(self._waited[slot]), self._skill)
            if self._phase[slot] == CLOSE and phase != CLOSE:
                self._offset[slot] = 0
            self._waited[slot] = self._waited[slot] + 1 if phase == self._phase[slot] else 0
            self._phase[slot] = phase
        return actions

    def _start(self, slot: int) -> None:
        self._phase[slot] = APPROACH
        self._waited[slot] = 0
        self._offset[slot] = 0
        if not self._skill.push and self._rng.random() < self._miss_probability:
            angle, distance = self._rng.uniform(0, 2 * np.pi), self._rng.uniform(0.02, 0.04)
            self._offset[slot, :2] = distance * np.cos(angle), distance * np.sin(angle)

    def _look(self, slot: int) -> Sight:
        engine, row = self._engine(slot)
        environment, skill = engine.environment, self._skill
        thing, goal = getattr(environment, skill.thing), getattr(environment, skill.goal)
        tool = _numpy(environment.agent.tcp.pose.raw_pose)[row]
        pose = _numpy(thing.pose.raw_pose)[row]
        return Sight(
            tool=tool[:3],
            tool_yaw=_direction(tool[3:], axis=1),
            thing=pose[:3],
            thing_yaw=_direction(pose[3:], axis=0),
            goal=_numpy(goal.pose.p)[row] + _up(skill.above),
            held=not skill.push and bool(environment.agent.is_grasping(thing)[row]),
        )


def _carry(off: Vectors, thing: Vectors, goal: Vectors, lower: bool) -> Vectors:
    """The way of a held thing: up first, then across, and down only over the goal where it is to be set down."""
    if not lower or np.linalg.norm(off[:2]) <= 0.015:
        return off
    rise = goal[2] + 0.04 - thing[2]
    return np.array([*(off[:2] if rise < 0.02 else (0.0, 0.0)), rise])


def _push(sight: Sight, phase: int) -> tuple[int, NDArray[np.float32]]:
    ahead = sight.goal - sight.thing
    ahead[2] = 0
    way = ahead / max(float(np.linalg.norm(ahead)), 1e-6)
    behind = sight.thing - 0.06 * way
    behind[2] = 0.02
    if phase == APPROACH and np.linalg.norm(sight.tool[:2] - behind[:2]) < 0.015:
        phase = DESCEND
    elif phase == DESCEND and sight.tool[2] < 0.03:
        phase = CARRY
    target = {
        APPROACH: behind + _up(0.08),
        DESCEND: behind,
        CARRY: np.array([*(sight.thing + ahead)[:2], 0.02]),
    }[phase]
    return phase, _action(target - sight.tool, 0.0, False)


def _action(move: Vectors, turn: float, opened: bool) -> NDArray[np.float32]:
    length = float(np.linalg.norm(move))
    move = move * min(1.0, _STEP / max(length, 1e-9))
    return np.array([*move, 0, 0, np.clip(turn, -_TURN, _TURN), opened], np.float32)


def _up(height: float) -> Vectors:
    return np.array([0.0, 0.0, height])


def _quarter(angle: float) -> float:
    """The angle that is equivalent for a cube, between -45 and 45 degrees."""
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)


def _direction(quaternion: Vectors, axis: int) -> float:
    """The direction on the table, in radians, of a body's x (0) or y (1) axis; quaternions have w first."""
    w, x, y, z = quaternion
    if axis == 0:
        return float(np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)))
    return float(np.arctan2(1 - 2 * (x * x + z * z), 2 * (x * y - w * z)))


def _numpy(tensor: Any) -> Vectors:
    return tensor.cpu().numpy().astype(np.float64)


SKILLS = {
    "PickCube-v1": Skill("cube", "goal_site"),
    "StackCube-v1": Skill("cubeA", "cubeB", above=0.04, release=True),
    "PushCube-v1": Skill("obj", "goal_region", push=True),
}
"""The tasks that have an expert."""
