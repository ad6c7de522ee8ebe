"""A miniature asset set, generated: two arms of boxes and a hammer of two boxes, enough for `beat_block_hammer`.

It stands in for the published assets where those are not there. Lengths are in metres.
"""

import json
from pathlib import Path

TASKS = ("beat_block_hammer",)
"""The tasks that it is enough for."""

_EMBODIMENT = Path("assets/embodiments/piper")
_HAMMER = Path("assets/objects/020_hammer")

# Parent, child, origin in the parent, axis, lowest and highest angle; then the child's box: size, centre, colour.
_ARM = (
    ("base_link", "link1", (0, 0, 0.10), (0, 0, 1), (-2.6, 2.6), (0.07, 0.07, 0.08), (0, 0, 0.04), "dark"),
    ("link1", "link2", (0, 0, 0.10), (0, 1, 0), (-2.2, 2.2), (0.30, 0.05, 0.05), (0.17, 0, 0), "light"),
    ("link2", "link3", (0.34, 0, 0), (0, 1, 0), (-2.8, 2.8), (0.27, 0.045, 0.045), (0.16, 0, 0), "dark"),
    ("link3", "link4", (0.32, 0, 0), (1, 0, 0), (-3.1, 3.1), (0.03, 0.04, 0.04), (0.02, 0, 0), "light"),
    ("link4", "link5", (0.05, 0, 0), (0, 1, 0), (-1.8, 1.8), (0.03, 0.04, 0.04), (0.02, 0, 0), "dark"),
    ("link5", "link6", (0.05, 0, 0), (1, 0, 0), (-3.1, 3.1), (0.03, 0.10, 0.035), (0.02, 0, 0), "light"),
)
_FINGER_TRAVEL = 0.04
_COLOURS = {"dark": (0.15, 0.17, 0.2), "light": (0.9, 0.55, 0.15), "black": (0.05, 0.05, 0.05)}


def write(root: Path) -> None:
    """Write the set below `root`, which then is what RoboTwin calls its assets root."""
    (root / "assets" / "background_texture").mkdir(parents=True, exist_ok=True)
    (root / _EMBODIMENT).mkdir(parents=True, exist_ok=True)
    (root / _HAMMER).mkdir(parents=True, exist_ok=True)
    files = {
        _EMBODIMENT / "config.yml": json.dumps(_config(), indent=1),
        _EMBODIMENT / "arm.urdf": _urdf(),
        _EMBODIMENT / "arm.srdf": '<robot name="miniature"/>\n',
        _EMBODIMENT / "curobo_left_tmp.yml": json.dumps({"robot_cfg": {}}),
        _EMBODIMENT / "curobo_right_tmp.yml": json.dumps({"robot_cfg": {}}),
        _HAMMER / "textured0.obj": _hammer_mesh(),
        _HAMMER / "textured0.mtl": _hammer_materials(),
        _HAMMER / "model_data0.json": json.dumps(_hammer_data(), indent=1),
    }
    for path, text in files.items():
        (root / path).write_text(text)


def _config() -> dict[str, object]:
    """What RoboTwin reads of an arm; two of them stand side by side and face away from the camera."""
    joints = [f"joint{i + 1}" for i in range(6)]
    gripper = {"base": "joint7", "mimic": [["joint8", 1.0, 0.0]]}
    facing = [0.7071068, 0, 0, 0.7071068]
    return {
        "urdf_path": "arm.urdf",
        "srdf_path": "arm.srdf",
        "joint_stiffness": 1000,
        "joint_damping": 200,
        "gripper_stiffness": 1000,
        "gripper_damping": 200,
        "move_group": ["link6", "link6"],
        "ee_joints": ["joint6", "joint6"],
        "arm_joints_name": [joints, joints],
        "gripper_name": [gripper, gripper],
        "gripper_bias": 0.1,
        "gripper_scale": [0.0, _FINGER_TRAVEL],
        "homestate": [[0, -1.0, 1.9, 0, 0.6, 0]] * 2,
        "delta_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "global_trans_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "robot_pose": [[0, -0.45, 0.74, *facing]] * 2,
        "planner": "mplib_RRT",
        "dual_arm": False,
        "rotate_lim": [0, 0],
        "grasp_perfect_direction": ["front_right", "front_left"],
        "static_camera_list": [
            {
                "name": "head_camera",
                "type": "D435",
                "position": [0, -0.7, 1.75],
                "forward": [0, 0.7, -1.0],
                "left": [-1, 0, 0],
            }
        ],
    }


def _urdf() -> str:
    parts = ['<robot name="miniature">', _link("base_link", (0.1, 0.1, 0.1), (0, 0, 0.05), "dark")]
    for index, (parent, child, origin, axis, limits, size, centre, colour) in enumerate(_ARM, 1):
        parts.append(_link(child, size, centre, colour))
        parts.append(_joint(f"joint{index}", "revolute", parent, child, origin, axis, limits))
    for index, side in ((7, 1), (8, -1)):
        parts.append(_link(f"link{index}", (0.07, 0.01, 0.02), (0.035, 0, 0), "black"))
        slide = (0, side, 0)
        parts.append(
            _joint(
                f"joint{index}", "prismatic", "link6", f"link{index}", (0.04, 0.006 * side, 0), slide,
                (0, _FINGER_TRAVEL),
            )
        )  # fmt: skip
    parts.append('<link name="camera"/>')
    parts.append(
        '<joint name="camera_joint" type="fixed"><parent link="link5"/><child link="camera"/>'
        '<origin xyz="-0.02 0 0.12" rpy="0 0.6 0"/></joint>'
    )
    return "\n".join([*parts, "</robot>\n"])


def _link(name: str, size: tuple[float, ...], centre: tuple[float, ...], colour: str) -> str:
    origin, box = f'<origin xyz="{_row(centre)}"/>', f'<geometry><box size="{_row(size)}"/></geometry>'
    inertia = 'ixx="0.002" ixy="0" ixz="0" iyy="0.002" iyz="0" izz="0.002"'
    shade = f'<material name="{colour}"><color rgba="{_row(_COLOURS[colour])} 1"/></material>'
    return (
        f'<link name="{name}"><inertial>{origin}<mass value="1"/><inertia {inertia}/></inertial>'
        f"<visual>{origin}{box}{shade}</visual><collision>{origin}{box}</collision></link>"
    )


def _joint(
    name: str,
    kind: str,
    parent: str,
    child: str,
    origin: tuple[float, ...],
    axis: tuple[int, ...],
    limits: tuple[float, float],
) -> str:
    lower, upper = limits
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        f'<origin xyz="{_row(origin)}"/><axis xyz="{_row(axis)}"/>'
        f'<limit lower="{lower}" upper="{upper}" effort="200" velocity="5"/></joint>'
    )


def _row(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


# A handle along x, and a head across its end: centre and half size.
_HANDLE = ((0.0, 0.0, 0.0), (0.09, 0.012, 0.012))
_HEAD = ((0.085, 0.0, 0.0), (0.02, 0.05, 0.02))


def _hammer_mesh() -> str:
    lines, count = ["mtllib textured0.mtl"], 0
    for name, (centre, half) in (("handle", _HANDLE), ("head", _HEAD)):
        corners = [
            [c + h * sign for c, h, sign in zip(centre, half, signs, strict=True)]
            for signs in ((x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))
        ]
        lines += [f"o {name}", f"usemtl {name}", *(f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in corners)]
        # Corner i has x, y, z by the bits of i; each face is two triangles, seen from outside.
        for a, b, c, d in ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)):
            one, two, three, four = (count + corner + 1 for corner in (a, b, c, d))
            lines += [f"f {one} {two} {three}", f"f {one} {three} {four}"]
        count += len(corners)
    return "\n".join(lines) + "\n"


def _hammer_materials() -> str:
    colours = {"handle": (0.55, 0.33, 0.12), "head": (0.2, 0.22, 0.25)}
    return "".join(f"newmtl {name}\nKd {_row(colour)}\n" for name, colour in colours.items())


def _hammer_data() -> dict[str, object]:
    """Points of the hammer as matrices: its head beats with its lower side, its handle is grasped from above."""

    def at(x: float, rotation: tuple[tuple[int, ...], ...], z: float = 0) -> list[list[float]]:
        return [[*rotation[0], x], [*rotation[1], 0], [*rotation[2], z], [0, 0, 0, 1]]

    upright = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    # A gripper comes along -y of a contact and closes along its z; the hammer lies with its own z down.
    from_above = ((1, 0, 0), (0, 0, 1), (0, -1, 0))
    extents = [_HEAD[0][0] + _HEAD[1][0] + _HANDLE[1][0], 2 * _HEAD[1][1], 2 * _HEAD[1][2]]
    return {
        "scale": [1, 1, 1],
        "extents": extents,
        "center": [0, 0, 0],
        "contact_points_pose": [at(-0.03, from_above)],
        "functional_matrix": [at(_HEAD[0][0], upright, _HEAD[1][2])],
        "target_pose": [at(0, upright)],
        "orientation_point": at(0, upright),
    }
