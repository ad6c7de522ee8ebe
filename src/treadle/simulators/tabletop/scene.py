# mujoco ships no stubs for its compiled modules.
# pyright: reportAttributeAccessIssue=false

"""The MuJoCo scene: a floating parallel-jaw gripper, free objects and flat plates on a table.

Lengths in metres, angles in radians; x is to the right of the camera, y away from it, z up, the table top is z = 0.
"""

from functools import cache

import mujoco
import numpy as np
from numpy.typing import NDArray

SHAPES = ("cube", "cylinder", "prism", "brick", "capsule", "octagon", "box")
"""Object shapes; the first four are those of training."""
PLATE_SHAPES = ("round", "square")
"""Plate shapes; the first is that of training."""
HALF_HEIGHT = {
    "cube": 0.02,
    "cylinder": 0.02,
    "prism": 0.02,
    "brick": 0.017,
    "capsule": 0.018,
    "octagon": 0.02,
    "box": 0.029,
}
"""Half of each shape's height as it stands on the table."""

PLATE_RADIUS = 0.06
PLATE_THICKNESS = 0.006
OPENING = 0.0475
"""Travel of each finger from closed to open; the jaws open to twice this."""
MAX_OBJECTS = 3
MAX_PLATES = 3

TABLE_GEOM, PALM_GEOM, STEM_GEOM, LEFT_GEOM, RIGHT_GEOM = range(5)
FIRST_OBJECT_GEOM = 5
"""Objects follow in order, then plates, one geom each."""
FINGER_QPOS = 4
OBJECT_QPOS = 6
"""qpos: x, y, z, yaw of the tool, two fingers, then 7 numbers an object."""

TIMESTEP = 0.005
SUBSTEPS = 10


def _prism(sides: int, radius: float, half: float) -> str:
    angles = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    ring = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    points = np.concatenate([np.c_[ring, np.full(sides, -half)], np.c_[ring, np.full(sides, half)]])
    return " ".join(f"{value:.6f}" for value in points.ravel())


_MESHES = {"prism": _prism(6, 0.0235, 0.02), "octagon": _prism(8, 0.0225, 0.02)}
_GEOMS = {
    "cube": 'type="box" size=".02 .02 .02"',
    "cylinder": 'type="cylinder" size=".021 .02"',
    "prism": 'type="mesh" mesh="prism"',
    "brick": 'type="box" size=".025 .015 .017"',
    "capsule": 'type="capsule" size=".018 .016" euler="1.5707963 0 0"',
    "octagon": 'type="mesh" mesh="octagon"',
    "box": 'type="box" size=".016 .016 .029"',
}
_PLATES = {
    "round": f'type="cylinder" size="{PLATE_RADIUS} {PLATE_THICKNESS / 2}"',
    "square": f'type="box" size=".054 .054 {PLATE_THICKNESS / 2}"',
}

# Contact bits: the gripper (1) and the table and plates (4) meet objects only. The tool's lowest goal keeps the finger
# tips above plates, so they need no contact with each other.
_TEMPLATE = """
<mujoco>
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" iterations="8" ls_iterations="8" impratio="10"/>
  <size memory="600K"/>
  <asset>{meshes}</asset>
  <default>
    <geom friction="1 .01 .001" solref=".01 1"/>
    <default class="gripper"><geom contype="1" conaffinity="0" friction="2 .02 .001" condim="4"/></default>
    <default class="object"><geom contype="2" conaffinity="7" density="1000"/></default>
    <default class="plate"><geom contype="4" conaffinity="0"/></default>
  </default>
  <worldbody>
    <geom name="table" type="plane" size="1 1 .1" contype="4" conaffinity="0" group="1"/>
    <body name="tool" gravcomp="1" childclass="gripper">
      <joint name="x" type="slide" axis="1 0 0" damping="40"/>
      <joint name="y" type="slide" axis="0 1 0" damping="40"/>
      <joint name="z" type="slide" axis="0 0 1" damping="40"/>
      <joint name="yaw" type="hinge" axis="0 0 1" damping=".17" armature=".001"/>
      <geom name="palm" type="box" size=".058 .012 .009" pos="0 0 .068" mass=".25"/>
      <geom name="stem" type="cylinder" size=".011 .05" pos="0 0 .125" mass=".01" contype="0"/>
      <body name="left" gravcomp="1">
        <joint name="left" type="slide" axis="-1 0 0" range="0 {opening}" damping="6"/>
        <geom name="left" type="box" size=".006 .018 .035" pos="-.006 0 .025" mass=".05"/>
      </body>
      <body name="right" gravcomp="1">
        <joint name="right" type="slide" axis="1 0 0" range="0 {opening}" damping="6"/>
        <geom name="right" type="box" size=".006 .018 .035" pos=".006 0 .025" mass=".05"/>
      </body>
    </body>
    {bodies}
  </worldbody>
  <actuator>
    <position joint="x" kp="1000"/><position joint="y" kp="1000"/><position joint="z" kp="1000"/>
    <position joint="yaw" kp="5"/><position joint="left" kp="200"/><position joint="right" kp="200"/>
  </actuator>
  <sensor>{sensors}</sensor>
</mujoco>
"""


@cache
def build(shapes: tuple[str, ...], plates: tuple[str, ...]) -> mujoco.MjModel:
    """The model of a combination of object and plate shapes; the same, constant model for every slot that has it.

    Contact sensors, in order: left finger with each object, right finger with each object, the first object with
    the first plate.
    """
    bodies = [
        f'<body name="object{i}" pos="{i} 1 .1" childclass="object"><joint type="free" damping=".0002"/>'
        f'<geom name="object{i}" {_GEOMS[shape]}/></body>'
        for i, shape in enumerate(shapes)
    ]
    bodies += [
        f'<body name="plate{i}" mocap="true" childclass="plate"><geom name="plate{i}" {_PLATES[plate]}/></body>'
        for i, plate in enumerate(plates)
    ]
    pairs = [(finger, f"object{i}") for finger in ("left", "right") for i in range(len(shapes))]
    pairs.append(("object0", "plate0"))
    xml = _TEMPLATE.format(
        timestep=TIMESTEP,
        opening=OPENING,
        meshes="".join(f'<mesh name="{n}" vertex="{v}"/>' for n, v in _MESHES.items() if n in shapes),
        bodies="".join(bodies),
        sensors="".join(f'<contact geom1="{a}" geom2="{b}" num="1" data="found"/>' for a, b in pairs),
    )
    return mujoco.MjModel.from_xml_string(xml)


def place(
    data: mujoco.MjData,
    tool: NDArray[np.float64],
    finger: float,
    objects: NDArray[np.float64],
    plates: NDArray[np.float64],
) -> None:
    """Set poses without stepping: tool [4] (x, y, z, yaw), finger travel, objects [n, 4] (x, y, z, yaw), plates [m, 2].

    Positions of bodies are not recomputed: call mj_forward, or mj_kinematics and mj_comPos, next.
    """
    qpos = data.qpos
    qpos[:FINGER_QPOS] = tool
    qpos[FINGER_QPOS:OBJECT_QPOS] = finger
    free = qpos[OBJECT_QPOS:].reshape(-1, 7)
    free[:, :3] = objects[:, :3]
    free[:, 3] = np.cos(objects[:, 3] / 2)
    free[:, 4:6] = 0
    free[:, 6] = np.sin(objects[:, 3] / 2)
    data.mocap_pos[:, :2] = plates
    data.mocap_pos[:, 2] = PLATE_THICKNESS / 2
