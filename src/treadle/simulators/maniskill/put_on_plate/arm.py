"""An arm with the joints of the WidowX 250 S, drawn in boxes and cylinders: a description that needs no meshes.

Joint places, axes and limits are the arm's published kinematics (at zero, the tool is 0.458 m ahead of the base and
0.361 m above it); shapes and masses are our own.
"""

from dataclasses import dataclass

Vector = tuple[float, float, float]

_BLACK, _STEEL = "0.06 0.06 0.07 1", "0.35 0.36 0.38 1"


@dataclass(frozen=True, slots=True)
class _Box:
    at: Vector
    size: Vector
    """Metres."""
    colour: str = _BLACK
    solid: bool = True
    """Whether it collides."""


@dataclass(frozen=True, slots=True)
class _Joint:
    name: str
    kind: str
    parent: str
    child: str
    at: Vector
    axis: Vector = (1, 0, 0)
    limits: tuple[float, float] = (0, 0)


_LINKS: dict[str, tuple[_Box, ...]] = {
    "base_link": (_Box((-0.02, 0, 0.025), (0.15, 0.12, 0.05), solid=False), _Box((0, 0, 0.06), (0.07, 0.07, 0.03))),
    "shoulder_link": (_Box((0, 0, 0.012), (0.06, 0.07, 0.06)),),
    "upper_arm_link": (
        _Box((0, 0, 0.115), (0.035, 0.05, 0.21), solid=False),
        _Box((0.025, 0, 0.24), (0.07, 0.05, 0.035), solid=False),
    ),
    "upper_forearm_link": (_Box((0.09, 0, 0), (0.15, 0.04, 0.04), solid=False),),
    "lower_forearm_link": (_Box((0.03, 0, 0), (0.07, 0.035, 0.035), _STEEL, solid=False),),
    "wrist_link": (_Box((0.03, 0, 0), (0.05, 0.045, 0.035), solid=False),),
    "gripper_link": (_Box((0.015, 0, 0), (0.03, 0.06, 0.05), solid=False),),
    "ee_arm_link": (),
    "gripper_bar_link": (_Box((0.008, 0, 0), (0.012, 0.11, 0.025), _STEEL),),
    "fingers_link": (),
    "left_finger_link": (
        _Box((0.004, 0.006, 0), (0.02, 0.022, 0.022), _BLACK, solid=False),
        _Box((0.03, 0.0, 0), (0.04, 0.01, 0.022)),
    ),
    "right_finger_link": (
        _Box((0.004, -0.006, 0), (0.02, 0.022, 0.022), _BLACK, solid=False),
        _Box((0.03, 0.0, 0), (0.04, 0.01, 0.022)),
    ),
    "ee_gripper_link": (),
}
_MASSES = {"base_link": 0.5, "shoulder_link": 0.5, "upper_arm_link": 0.7, "upper_forearm_link": 0.3}

_Y, _Z = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_JOINTS = (
    _Joint("waist", "revolute", "base_link", "shoulder_link", (0, 0, 0.072), _Z, (-3.14159, 3.14159)),
    _Joint("shoulder", "revolute", "shoulder_link", "upper_arm_link", (0, 0, 0.03865), _Y, (-1.88496, 1.98968)),
    _Joint("elbow", "revolute", "upper_arm_link", "upper_forearm_link", (0.04975, 0, 0.25), _Y, (-2.14675, 1.6057)),
    _Joint(
        "forearm_roll",
        "revolute",
        "upper_forearm_link",
        "lower_forearm_link",
        (0.175, 0, 0),
        limits=(-3.14159, 3.14159),
    ),
    _Joint("wrist_angle", "revolute", "lower_forearm_link", "wrist_link", (0.075, 0, 0), _Y, (-1.74533, 2.14675)),
    _Joint("wrist_rotate", "revolute", "wrist_link", "gripper_link", (0.065, 0, 0), limits=(-3.14159, 3.14159)),
    _Joint("ee_arm", "fixed", "gripper_link", "ee_arm_link", (0.043, 0, 0)),
    _Joint("gripper_bar", "fixed", "ee_arm_link", "gripper_bar_link", (0, 0, 0)),
    _Joint("ee_bar", "fixed", "gripper_bar_link", "fingers_link", (0.023, 0, 0)),
    _Joint("left_finger", "prismatic", "fingers_link", "left_finger_link", (0, 0, 0), _Y, (0.014, 0.038)),
    _Joint("right_finger", "prismatic", "fingers_link", "right_finger_link", (0, 0, 0), (0, -1, 0), (0.014, 0.038)),
    _Joint("ee_gripper", "fixed", "fingers_link", "ee_gripper_link", (0.027575, 0, 0)),
)


def urdf() -> str:
    """The arm in the Unified Robot Description Format."""
    lines = ['<?xml version="1.0"?>', '<robot name="wx250s">']
    for name, boxes in _LINKS.items():
        mass = _MASSES.get(name, 0.1)
        inertia = mass * 1e-3
        lines.append(f'  <link name="{name}">')
        lines.append(
            f'    <inertial><origin xyz="0 0 0"/><mass value="{mass}"/><inertia ixx="{inertia}" ixy="0" ixz="0" '
            f'iyy="{inertia}" iyz="0" izz="{inertia}"/></inertial>'
        )
        for box in boxes:
            shape = f'<origin xyz="{_text(box.at)}"/><geometry><box size="{_text(box.size)}"/></geometry>'
            tint = f'<material name="m{box.colour.replace(" ", "_")}"><color rgba="{box.colour}"/></material>'
            lines.append(f"    <visual>{shape}{tint}</visual>")
            if box.solid:
                lines.append(f"    <collision>{shape}</collision>")
        lines.append("  </link>")
    for joint in _JOINTS:
        lines.append(f'  <joint name="{joint.name}" type="{joint.kind}">')
        lines.append(f'    <parent link="{joint.parent}"/><child link="{joint.child}"/>')
        lines.append(f'    <origin xyz="{_text(joint.at)}"/>')
        if joint.kind != "fixed":
            low, high = joint.limits
            lines.append(f'    <axis xyz="{_text(joint.axis)}"/>')
            lines.append(f'    <limit lower="{low}" upper="{high}" effort="100" velocity="3.14"/>')
        lines.append("  </joint>")
    return "\n".join([*lines, "</robot>", ""])


def _text(vector: Vector) -> str:
    return " ".join(f"{part:g}" for part in vector)
