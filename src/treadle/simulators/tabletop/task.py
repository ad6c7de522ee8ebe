"""What the task measures: success, grasp, reward and the arrays an observation is made of. Vectorised over rows.

Shapes: n rows, O = MAX_OBJECTS, P = MAX_PLATES. Object 0 and plate 0 are the named ones.
"""

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.tabletop.scene import (
    FINGER_QPOS,
    MAX_OBJECTS,
    MAX_PLATES,
    OBJECT_QPOS,
    OPENING,
    PLATE_RADIUS,
    PLATE_THICKNESS,
    SHAPES,
)

TRANSLATION_LIMIT = 0.03
"""Metres that the commanded position moves in a control step at most, on each axis."""
YAW_LIMIT = 0.15
"""Radians that the commanded yaw turns in a control step at most."""
PROPRIOCEPTION_DIM = 7
STATE_DIM = 56
_SCALE = 0.15
_SPAN = 0.35
_GRASP, _SUCCESS = 0.1, 1.0

QPOS = OBJECT_QPOS + 7 * MAX_OBJECTS
QVEL = OBJECT_QPOS + 6 * MAX_OBJECTS
SENSORS = 2 * MAX_OBJECTS + 1


class Records:
    """The state of every slot, one row each; rows of absent objects and plates are zero."""

    def __init__(self, slots: int) -> None:
        self.qpos = np.zeros((slots, QPOS))
        self.qvel = np.zeros((slots, QVEL))
        self.contact = np.zeros((slots, SENSORS), np.bool_)
        """[B, SENSORS], left finger with each object, right finger with each, named object with named plate."""
        self.goal = np.zeros((slots, 4))
        """[B, 4], commanded pose x, y, z, yaw."""
        self.closed = np.zeros(slots, np.bool_)
        """[B], fingers are commanded closed."""
        self.plates = np.zeros((slots, MAX_PLATES, 2))
        self.objects_present = np.zeros((slots, MAX_OBJECTS))
        self.plates_present = np.zeros((slots, MAX_PLATES))
        self.half = np.zeros(slots)
        """[B], half height of the named object."""
        self.shape = np.zeros(slots, np.intp)
        """[B], index of the named object's shape."""
        self.grasped = np.zeros(slots, np.bool_)
        """[B], the named object was grasped in this episode."""
        self.potential = np.zeros(slots)
        self.step = np.zeros(slots, np.intp)
        """[B], control steps played."""

    def objects(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """[n, O, 3] positions."""
        return self.qpos[rows, OBJECT_QPOS:].reshape(-1, MAX_OBJECTS, 7)[:, :, :3]


def held(records: Records, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[n] whether both fingers touch the named object."""
    contact = records.contact[rows]
    return contact[:, 0] & contact[:, MAX_OBJECTS]


def succeeded(records: Records, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """[n] whether the named object rests on the named plate: touching it, its centre over it, at the height of
    what stands or lies there, not faster than 0.2 m/s, and not between both fingers.
    """
    position = records.qpos[rows, OBJECT_QPOS : OBJECT_QPOS + 3]
    height = position[:, 2] - PLATE_THICKNESS
    speed = np.square(records.qvel[rows, OBJECT_QPOS : OBJECT_QPOS + 3]).sum(1)
    return (
        records.contact[rows, 2 * MAX_OBJECTS]
        & (_plate_distance(records, rows) < PLATE_RADIUS)
        & (height > 0.01)
        & (height < records.half[rows] + 0.012)
        & (speed < 0.04)
        & ~held(records, rows)
    )


def potential(records: Records, rows: NDArray[np.intp], success: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[n] how far along a state is: 0.4 near(tool, object) + 0.6 near(object, plate) + grasp (0.1 + 0.15 lift), or 1.25
    on success, where near(d) = 1 - min(d / 0.35, 1), near(tool, object) is 1 while grasped, and lift is the height
    over the table in units of 5 cm, at most 1 and 1 over the plate. A function of state only, so that its differences
    sum to that of the first and last state (Ng et al. 1999, with a discount of 1).
    """
    position = records.qpos[rows, OBJECT_QPOS : OBJECT_QPOS + 3]
    reach = np.sqrt(np.square(position - records.qpos[rows, :3]).sum(1))
    to_plate = _plate_distance(records, rows)
    grasp = held(records, rows) & records.closed[rows]
    lift = np.where(to_plate < PLATE_RADIUS, 1.0, np.clip((position[:, 2] - records.half[rows]) / 0.05, 0, 1))
    near_object = np.where(grasp, 1.0, 1 - np.minimum(reach / _SPAN, 1))
    value = 0.4 * near_object + 0.6 * (1 - np.minimum(to_plate / _SPAN, 1)) + grasp * (0.1 + 0.15 * lift)
    return np.where(success, 1.25, value)


def judge(records: Records, rows: NDArray[np.intp], shaped: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Reward and success [n] of the control step that led to the present state; updates `grasped` and `potential`."""
    success = succeeded(records, rows)
    grasp = held(records, rows) & records.closed[rows]
    first = grasp & ~records.grasped[rows]
    records.grasped[rows] |= grasp
    reward = _SUCCESS * success.astype(np.float64)
    if shaped:
        value = potential(records, rows, success)
        reward += _GRASP * first + value - records.potential[rows]
        records.potential[rows] = value
    return reward, success


def proprioception(records: Records, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """[n, 7] commanded x, y, z (metres), sine and cosine of the commanded yaw, measured opening as a share of the full
    one, whether the fingers are commanded closed.
    """
    goal = records.goal[rows]
    opening = records.qpos[rows, FINGER_QPOS:OBJECT_QPOS].sum(1) / (2 * OPENING)
    columns = [goal[:, :3], np.sin(goal[:, 3]), np.cos(goal[:, 3]), opening, records.closed[rows]]
    return np.column_stack(columns).astype(np.float32)


def state(records: Records, rows: NDArray[np.intp], horizon: int) -> NDArray[np.float32]:
    """[n, 56] privileged state, about unit range: tool (pose 4, velocity 4, command minus pose 3, fingers 2, closed 1),
    named object (from the tool 3, to the plate 3, height 1, velocity 3, axis 1, shape 7), plate from the tool 2, other
    objects (from the tool 3, present 1) x 2, other plates (from the tool 2, present 1) x 2, contacts (left 1, right 1,
    plate 1, other object held 1), grasped once 1, near 1, potential 1, remaining time 1.
    """
    n = len(rows)
    qpos, qvel, contact = records.qpos[rows], records.qvel[rows], records.contact[rows]
    tool = qpos[:, :3]
    objects, present = records.objects(rows), records.objects_present[rows]
    offset = (objects - tool[:, None]) / _SCALE * present[:, :, None]
    plates = (records.plates[rows] - tool[:, None, :2]) / _SCALE * records.plates_present[rows][:, :, None]
    named = qpos[:, OBJECT_QPOS : OBJECT_QPOS + 7]
    upright = 1 - 2 * (named[:, 4] ** 2 + named[:, 5] ** 2)
    to_plate = np.c_[records.plates[rows, 0] - named[:, :2], PLATE_THICKNESS + records.half[rows] - named[:, 2]]
    left, right = contact[:, :MAX_OBJECTS], contact[:, MAX_OBJECTS : 2 * MAX_OBJECTS]
    distance = np.sqrt(np.square(objects[:, 0] - tool).sum(1))
    columns = [
        tool / _SCALE,
        qpos[:, 3:4],
        qvel[:, :4] / 0.6,
        (records.goal[rows, :3] - tool) / 0.03,
        qpos[:, FINGER_QPOS:OBJECT_QPOS] / OPENING,
        records.closed[rows, None],
        offset[:, 0],
        to_plate / _SCALE,
        (named[:, 2:3] - records.half[rows, None]) / 0.05,
        qvel[:, OBJECT_QPOS : OBJECT_QPOS + 3] / 0.6,
        upright[:, None],
        np.eye(len(SHAPES))[records.shape[rows]],
        plates[:, 0],
        np.concatenate([offset[:, 1:], present[:, 1:, None]], 2).reshape(n, -1),
        np.concatenate([plates[:, 1:], records.plates_present[rows, 1:, None]], 2).reshape(n, -1),
        left[:, :1],
        right[:, :1],
        contact[:, 2 * MAX_OBJECTS :],
        (left & right)[:, 1:].any(1, keepdims=True),
        records.grasped[rows, None],
        np.exp(-distance / 0.03)[:, None],
        records.potential[rows, None],
        1 - records.step[rows, None] / horizon,
    ]
    return np.clip(np.concatenate(columns, 1), -5, 5).astype(np.float32)


def _plate_distance(records: Records, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.sqrt(np.square(records.qpos[rows, OBJECT_QPOS : OBJECT_QPOS + 2] - records.plates[rows, 0]).sum(1))
