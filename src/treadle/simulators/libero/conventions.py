"""What published policies of LIBERO send and see: actions, proprioception and the way pictures lie.

Shapes: n slots, C actions of a chunk.
"""

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.protocol import tool_motions

STEP, TURN = 0.05, 0.5
"""What an action of 1 asks for in a control step, in metres and radians."""
ACTIONS = tool_motions(metres=STEP)
"""Motions are in [-1, 1], in units of `STEP` and `TURN`."""
PROPRIOCEPTION_DIM = 8
"""Position of the gripper (metres), its rotation vector (radians), positions of both fingers (metres)."""
CONTROL_HZ = 20.0
SENSED = 24
"""The physics step of the 25 in a control step after which robosuite's sensors look; what they saw is handed out at its
end. They look once in 0.05 s, and have last done so two physics steps before an episode."""
SETTLING_GRIPPER = {"open": -1.0, "still": 0.0}
"""Commands of the gripper, in LIBERO's own convention, while a scene settles."""
OBJECTS = 2
"""Objects of interest that are kept, of each task."""


def to_control(actions: NDArray[np.float32]) -> NDArray[np.float64]:
    """A policy's actions [n, C, 7] as LIBERO's controller takes them: its gripper closes at 1 and opens at -1.

    The gripper's command is a sign, as published: exactly 0.5 holds it as it is.
    """
    control = actions.astype(np.float64)
    control[..., 6] = -np.sign(2 * control[..., 6] - 1)
    return control


def settling_action(gripper: str) -> NDArray[np.float64]:
    """The action [7] that lets a scene settle, as LIBERO's controller takes it; `gripper` of `SETTLING_GRIPPER`."""
    return np.array([0, 0, 0, 0, 0, 0, SETTLING_GRIPPER[gripper]])


def rotation_vector(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation vector [3] of a unit quaternion [4], w last: its angle in [0, 2 pi] times its axis, zero for no
    rotation. q and -q differ, as in the published data.
    """
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return quaternion[:3] * (2.0 * np.arccos(w) / sine)


def as_published(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] as OpenGL gives it (last row first), turned by half a turn.

    It is upright, and left and right are swapped: so was the data that published policies were trained on.
    """
    return frame[::-1, ::-1]
