"""A set of assets that needs no download: prisms as objects and plates, and painted tables."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.maniskill.put_on_plate.settings import TABLES

REVISION = 1
"""Changes with what is generated."""

COLOURS = {
    "red": (0.80, 0.10, 0.10),
    "green": (0.10, 0.55, 0.15),
    "blue": (0.10, 0.25, 0.75),
    "yellow": (0.90, 0.75, 0.05),
    "orange": (0.95, 0.40, 0.05),
    "purple": (0.45, 0.12, 0.60),
    "pink": (0.95, 0.45, 0.65),
    "brown": (0.35, 0.18, 0.08),
    "grey": (0.35, 0.35, 0.38),
    "white": (0.85, 0.85, 0.82),
}


@dataclass(frozen=True, slots=True)
class Prism:
    """A regular prism, stretched to a size; with `lying`, its axis is x instead of z."""

    words: str
    sides: int
    size: tuple[float, float, float]
    """Metres along x, y, z."""
    lying: bool = False

    @property
    def colour(self) -> tuple[float, float, float]:
        """By the first word, in linear light."""
        return COLOURS[self.words.split()[0]]


def _objects() -> tuple[Prism, ...]:
    block, bar = (4, (0.036, 0.036, 0.036), False), (4, (0.1, 0.026, 0.026), False)
    can, roll = (24, (0.04, 0.04, 0.06), False), (24, (0.08, 0.03, 0.03), True)
    shapes = {"block": block, "bar": bar, "can": can, "roll": roll}
    seen = ("red", "green", "blue", "yellow")
    named = [(colour, shape) for shape in shapes for colour in seen]
    named += [("orange", "block"), ("purple", "bar"), ("pink", "can"), ("brown", "roll"), ("white", "bar")]
    things = [Prism(f"{colour} {shape}", *shapes[shape]) for colour, shape in named]
    things += [
        Prism("red wedge", 3, (0.05, 0.035, 0.035), True),
        Prism("blue nut", 6, (0.044, 0.038, 0.025)),
        Prism("green pencil", 6, (0.12, 0.018, 0.018), True),
        Prism("orange tile", 4, (0.045, 0.045, 0.015)),
    ]
    return tuple(things)


def _plates() -> tuple[Prism, ...]:
    round_, square = (48, (0.11, 0.11, 0.006)), (4, (0.10, 0.10, 0.006))
    wide, hexagon = (4, (0.11, 0.08, 0.006)), (6, (0.11, 0.095, 0.006))
    unseen = {"plate": round_, "mat": square, "card": wide, "board": hexagon}
    colours = ("red", "green", "purple", "brown")
    return (
        Prism("white plate", *round_),
        *(Prism(f"{colour} {shape}", *form) for shape, form in unseen.items() for colour in colours),
    )


OBJECT_SHAPES, PLATE_SHAPES = _objects(), _plates()
"""Sixteen objects for training and nine others; one plate for training and sixteen others."""


def generate(folder: Path) -> None:
    """Write the whole set; the folder appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
        new = Path(temporary) / "set"
        _things(new / "more_carrot", OBJECT_SHAPES, density=500)
        _things(new / "more_plate", PLATE_SHAPES, density=1000)
        _tables(new / "more_table")
        if not folder.exists():  # another process may have been faster
            shutil.move(new, folder)


def mesh(shape: Prism) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Corners [N, 3] about the middle of its box, metres, and faces, counter-clockwise seen from outside."""
    turn = np.pi / 4 if shape.sides == 4 else (np.pi / 2 if shape.sides == 3 else 0.0)
    angles = turn + 2 * np.pi * np.arange(shape.sides) / shape.sides
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    low = np.column_stack([ring, -np.ones(shape.sides)])
    corners = np.concatenate([low, low * [1, 1, -1]])
    if shape.lying:
        corners = corners[:, [2, 0, 1]]
    corners -= (corners.max(0) + corners.min(0)) / 2
    corners *= np.array(shape.size) / np.ptp(corners, axis=0)
    n = shape.sides
    faces = [list(range(n))[::-1], list(range(n, 2 * n))]
    faces += [[i, (i + 1) % n, n + (i + 1) % n, n + i] for i in range(n)]
    return corners, faces


def _things(folder: Path, shapes: tuple[Prism, ...], density: float) -> None:
    entries = {}
    for index, shape in enumerate(shapes):
        name = f"{index + 1:03d}_{shape.words.replace(' ', '_')}"
        (folder / name).mkdir(parents=True)
        corners, faces = mesh(shape)
        lines = ["mtllib textured.mtl", "usemtl colour"]
        lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in corners]
        normals = [np.cross(corners[f[1]] - corners[f[0]], corners[f[2]] - corners[f[1]]) for f in faces]
        lines += [f"vn {x:.6f} {y:.6f} {z:.6f}" for x, y, z in (n / np.linalg.norm(n) for n in normals)]
        for place, face in enumerate(faces):
            for a, b in pairwise(face[1:]):
                lines.append("f " + " ".join(f"{corner + 1}//{place + 1}" for corner in (face[0], a, b)))
        (folder / name / "textured.obj").write_text("\n".join(lines) + "\n")
        (folder / name / "collision.obj").write_text("\n".join(lines[2:]) + "\n")
        colour = " ".join(f"{part:.3f}" for part in shape.colour)
        (folder / name / "textured.mtl").write_text(f"newmtl colour\nKd {colour}\nKs 0.1 0.1 0.1\n")
        half = [part / 2 for part in shape.size]
        entries[name] = {
            "name": shape.words,
            "bbox": {"min": [-part for part in half], "max": half},
            "scale": [1.0],
            "density": density,
        }
    (folder / "model_db.json").write_text(json.dumps(entries, indent=1))


def _tables(folder: Path) -> None:
    from PIL import Image

    for kind in ("imgs", "textures"):
        (folder / kind).mkdir(parents=True)
    entries = {}
    for index in range(TABLES):
        rng = np.random.default_rng(index)
        name, texture = f"{index + 1:03d}_table.png", f"{index + 1:03d}.png"
        Image.fromarray(_painting(rng)).save(folder / "imgs" / name, compress_level=1)
        Image.fromarray(_pattern(rng, 256, 256)).save(folder / "textures" / texture, compress_level=1)
        entries[name] = {"name": "table", "texture": texture, "mix": float(index > 0)}
    (folder / "model_db.json").write_text(json.dumps(entries, indent=1))


def _painting(rng: np.random.Generator) -> NDArray[np.uint8]:
    """[480, 640, 3] a table before a wall: muted colours, a grain along or across it, light from one side."""
    y, x = np.mgrid[0:480, 0:640] / 480
    table, wall = rng.uniform(90, 200, 3), rng.uniform(60, 220, 3)
    edge = rng.uniform(0.06, 0.16) + rng.uniform(-0.05, 0.05) * x
    depth = 1 / (y - edge + 0.25)
    across = (x - 0.67) * depth
    wave = np.sin(rng.uniform(15, 60) * (across if rng.random() < 0.5 else depth) + rng.uniform(0, 6))
    grain = wave * rng.uniform(2, 14) + rng.normal(0, 3, y.shape)
    light = 1 + rng.uniform(-0.25, 0.25) * (x - 0.67)
    image = np.where((y > edge)[..., None], table + grain[..., None], wall)
    return np.clip(image * light[..., None], 0, 255).astype(np.uint8)


def _pattern(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """[height, width, 3] a loud pattern of two colours."""
    y, x = np.mgrid[0:height, 0:width] / height
    first, second = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(4, 14)
    along, aside = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = (
        np.sin(2 * np.pi * pitch * along),
        np.sin(2 * np.pi * pitch * along) * np.sin(2 * np.pi * pitch * aside),
        np.sin(2 * np.pi * pitch * np.hypot(x - 0.5, y - 0.5)),
    )
    chosen = waves[int(rng.integers(3))] > 0
    return np.where(chosen[..., None], first, second).astype(np.uint8)
