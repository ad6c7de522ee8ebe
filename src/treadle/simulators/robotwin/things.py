"""Things of the miniature assets: boxes in place of RoboTwin's bottles, cups, plates, cans and pots, written as files
that RoboTwin reads. They stand where the originals would; whoever sees them learns nothing about those.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Kind:
    """A folder of objects that are all alike."""

    models: Sequence[int]
    size: Vector
    """Metres; the second is the height, and the origin is in the middle of the bottom."""
    colour: Vector


KINDS = {
    "001_bottle": Kind((13, 16), (0.05, 0.14, 0.05), (0.1, 0.45, 0.2)),
    "002_bowl": Kind((1, 2, 3, 5), (0.1, 0.04, 0.1), (0.8, 0.75, 0.6)),
    "003_plate": Kind((0,), (0.14, 0.01, 0.14), (0.9, 0.9, 0.95)),
    "019_coaster": Kind((0,), (0.09, 0.008, 0.09), (0.45, 0.3, 0.15)),
    "021_cup": Kind(range(8), (0.06, 0.08, 0.06), (0.2, 0.35, 0.75)),
    "105_sauce-can": Kind((0, 2, 4, 5, 6), (0.06, 0.09, 0.06), (0.75, 0.2, 0.15)),
}
POT, POTS = "060_kitchenpot", range(7)
_WIDTH, _HEIGHT, _HANDLES = 0.16, 0.08, 0.1
"""Metres of the pot's body, which is square, and how far its handles are from the middle."""
_CORNERS = [(x, y, z) for x in (-0.5, 0.5) for y in (0.0, 1.0) for z in (-0.5, 0.5)]
_TRIANGLES = [
    (1, 2, 4), (1, 4, 3), (5, 7, 8), (5, 8, 6), (1, 5, 6), (1, 6, 2),
    (3, 4, 8), (3, 8, 7), (1, 3, 7), (1, 7, 5), (2, 6, 8), (2, 8, 4),
]  # fmt: skip
"""Of a box, by the numbers of its corners from 1; they face outwards."""
_LINK = '<link name="{name}">{parts}</link>'
_JOINT = '<joint name="lid" type="fixed"><parent link="body"/><child link="lid"/><origin xyz="0 0 {height}"/></joint>'
_BOX = '<{kind}><origin xyz="{at}"/><geometry><box size="{size}"/></geometry></{kind}>'


def write_things(objects: Path) -> None:
    """Write all of them into a folder `objects`."""
    for name, kind in KINDS.items():
        folder = objects / name
        folder.mkdir(parents=True, exist_ok=True)
        for model in kind.models:
            (folder / f"textured{model}.mtl").write_text(f"newmtl all\nKd {_numbers(kind.colour)}\n")
            (folder / f"textured{model}.obj").write_text(_mesh(f"textured{model}.mtl", kind.size))
            (folder / f"model_data{model}.json").write_text(json.dumps(_facts(kind.size)))
    for model in POTS:
        folder = objects / POT / str(model)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mobility.urdf").write_text(_pot())
        (folder / "model_data.json").write_text(json.dumps(_pot_facts()))


def _mesh(materials: str, size: Vector) -> str:
    corners = [[a * b for a, b in zip(corner, size, strict=True)] for corner in _CORNERS]
    lines = [f"mtllib {materials}", "usemtl all", *(f"v {_numbers(corner)}" for corner in corners)]
    return "\n".join([*lines, *(f"f {a} {b} {c}" for a, b, c in _TRIANGLES)]) + "\n"


def _facts(size: Vector) -> dict[str, Any]:
    """What RoboTwin asks of a thing: its size, and the points at which it is held and used."""
    points = [_matrix()]
    return {
        "scale": [1, 1, 1],
        "extents": size,
        "center": [0, size[1] / 2, 0],
        # Tasks name them by number.
        "contact_points_pose": points * 4,
        "functional_matrix": points * 2,
        "target_pose": points,
        "orientation_point": _matrix(),
    }


def _pot() -> str:
    """Two links, for one alone would be no articulation."""
    half = _HEIGHT / 2
    handles = "".join(_box((side * _HANDLES, 0, half), (0.04, 0.03, 0.015)) for side in (-1, 1))
    body = _LINK.format(name="body", parts=_box((0, 0, half), (_WIDTH, _WIDTH, _HEIGHT)) + handles)
    lid = _LINK.format(name="lid", parts=_box((0, 0, 0.005), (0.05, 0.05, 0.01)))
    return f'<robot name="pot">{body}{lid}{_JOINT.format(height=_HEIGHT)}</robot>\n'


def _pot_facts() -> dict[str, Any]:
    # Handles to the left and to the right, from where the arms come.
    held = [{"base": "body", "matrix": _matrix((side * _HANDLES, 0, _HEIGHT / 2))} for side in (-1, 1)]
    used = [{"base": "body", "matrix": _matrix()}]
    return {
        "scale": 1.0,
        "extents": [2 * _HANDLES, _WIDTH, _HEIGHT],
        "contact_points": held,
        "functional_points": used,
        "target_points": used,
        "orientation_point": used,
    }


def _box(at: Vector, size: Vector) -> str:
    return "".join(_BOX.format(kind=kind, at=_numbers(at), size=_numbers(size)) for kind in ("visual", "collision"))


def _matrix(at: Vector = (0, 0, 0)) -> list[list[float]]:
    return [[float(i == j) for j in range(3)] + [at[i]] for i in range(3)] + [[0, 0, 0, 1]]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
