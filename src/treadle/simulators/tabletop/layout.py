"""What a scenario contains: shapes, colours, positions and looks, all drawn from one seed."""

import hashlib
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from treadle.simulators.tabletop.scene import HALF_HEIGHT, SHAPES

OBJECT_COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.10),
    "green": (0.12, 0.60, 0.18),
    "blue": (0.13, 0.25, 0.85),
    "yellow": (0.95, 0.80, 0.10),
    "orange": (0.95, 0.45, 0.05),
    "purple": (0.45, 0.12, 0.60),
}
"""Object colours; the first four are those of training."""
PLATE_COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.09),
    "pink": (0.98, 0.55, 0.72),
    "cyan": (0.30, 0.85, 0.90),
    "brown": (0.38, 0.20, 0.08),
    "lime": (0.70, 0.95, 0.35),
}
"""Plate colours; the first four are those of training."""
TRAIN_SHAPES, UNSEEN_SHAPES = SHAPES[:4], SHAPES[4:]
_COLOURS, _PLATES = tuple(OBJECT_COLOURS), tuple(PLATE_COLOURS)

SQUARE = 0.13
"""Half of the training square: object and plate centres lie within +-SQUARE of the middle of the table."""
REACH = 0.165
"""Half of the square in which every position is still visible and reachable."""
OBJECT_GAP = 0.095
"""Least distance of two objects, so that open fingers fit between them."""
OBJECT_PLATE_GAP = 0.093
PLATE_GAP = 0.125

SETTINGS: dict[str, tuple[str, ...]] = {
    "vision": ("texture", "noise", "light", "camera"),
    "semantic": ("object", "plate", "instruction", "distractor_object", "distractor_plate"),
    "execution": ("position", "pose", "moved"),
}
"""The out-of-distribution axes and their settings."""
CONCRETE = ("train", *(f"{axis}/{setting}" for axis, settings in SETTINGS.items() for setting in settings))
"""Suites with scenarios of their own; an axis is the union of its settings."""
TEXTURES = ("checker", "stripes", "noise", "wood")

PARAPHRASES = (
    "place the {o} onto the {p} plate",
    "move the {o} to the {p} plate",
    "pick up the {o} and put it on the {p} plate",
    "set the {o} down on the {p} plate",
    "the {o} belongs on the {p} plate",
    "grab the {o} and drop it on the {p} plate",
    "on the {p} plate, put the {o}",
    "take the {o}, then place it on the {p} plate",
    "could you put the {o} on the {p} plate",
    "please move the {o} over to the {p} plate",
    "transfer the {o} to the {p} plate",
    "lay the {o} on the plate that is {p}",
    "bring the {o} to the {p} plate",
    "I want the {o} to be on the {p} plate",
    "lift the {o} and leave it on the {p} plate",
    "the {p} plate should hold the {o}",
)


@dataclass(frozen=True, slots=True)
class Look:
    """How the camera sees a scene."""

    table: tuple[float, float, float] = (0.62, 0.56, 0.48)
    texture: str = "plain"
    texture_seed: int = 0
    light: tuple[float, float, float] = (0.3, -0.5, 0.81)
    """Direction toward the light, unit length."""
    ambient: float = 0.45
    diffuse: float = 0.62
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.0
    """Standard deviation of the pixel noise, in units of 255."""
    noise_seed: int = 0
    camera: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)
    """Shift of azimuth and elevation (radians), of the target in x and y (metres), and relative shift of distance."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The start of one episode. Object 0 and plate 0 are those that the instruction names."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    objects: NDArray[np.float64]
    """[n, 4], x, y, z, yaw."""
    plate_shapes: tuple[str, ...]
    plate_colours: tuple[str, ...]
    plates: NDArray[np.float64]
    """[m, 2]"""
    start: NDArray[np.float64]
    """[4], x, y, z, yaw of the tool."""
    instruction: str
    look: Look
    move: NDArray[np.float64] | None = None
    """[4], where the named object is put at control step 5 unless it was grasped before."""


def phrase(shape: str, colour: str, plate_colour: str, template: str = "put the {o} on the {p} plate") -> str:
    """The instruction for an object and a plate."""
    return template.format(o=f"{colour} {shape}", p=plate_colour)


@cache
def _gaps(objects: int, plates: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pairs of bodies, objects first, and the least squared distance of each pair."""
    is_plate = np.arange(objects + plates) >= objects
    mixed = np.where(is_plate[:, None] ^ is_plate, OBJECT_PLATE_GAP, OBJECT_GAP)
    gap = np.where(is_plate[:, None] & is_plate, PLATE_GAP, mixed)
    first, second = np.triu_indices(objects + plates, 1)
    return first, second, gap[first, second] ** 2


def words() -> tuple[str, ...]:
    """Texts that hold every word of every instruction."""
    plain = tuple(phrase(shape, colour, plate) for shape in SHAPES for colour in _COLOURS for plate in _PLATES)
    return plain + tuple(phrase(SHAPES[0], _COLOURS[0], _PLATES[0], template) for template in PARAPHRASES)


def _positions(rng: np.random.Generator, objects: int, plates: int, low: float, high: float) -> NDArray[np.float64]:
    """[objects + plates, 2] centres apart, all within `high`; the first object is outside `low` on some axis."""
    first, second, least = _gaps(objects, plates)
    while True:
        points = rng.uniform(-high, high, (96, objects + plates, 2))
        fits = (((points[:, first] - points[:, second]) ** 2).sum(-1) > least).all(1)
        if low:
            fits &= np.abs(points[:, 0]).max(-1) > low
        if fits.any():
            # A view would keep all candidates for as long as the layout is cached.
            return points[int(fits.argmax())].copy()


def _different(rng: np.random.Generator, names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(names[i] for i in rng.permutation(len(names))[:count].tolist())


def draw(
    rng: np.random.Generator, *, objects: int = 2, plates: int = 2, low: float = 0.0, high: float = SQUARE
) -> Layout:
    """A scene of the training distribution (with other counts or positions where asked)."""
    points = _positions(rng, objects, plates, low, high)
    colours = _different(rng, _COLOURS[:4], objects)
    plate_colours = _different(rng, _PLATES[:4], plates)
    shapes = _different(rng, TRAIN_SHAPES, objects)
    if rng.random() < 0.2:
        shapes = (shapes[0],) * objects
    yaw = rng.uniform(-0.3, 0.3, objects)
    start = np.array([0.0, 0.0, 0.14, 0.0]) + rng.uniform(-1, 1, 4) * (0.03, 0.03, 0.012, 0.1)
    shade = rng.uniform(0.88, 1.1)
    table = np.clip(np.array([0.62, 0.56, 0.48]) * shade + rng.uniform(-0.04, 0.04, 3), 0, 1)
    light = np.array([0.3, -0.5, 0.81]) + rng.uniform(-0.12, 0.12, 3)
    light /= np.linalg.norm(light)
    look = Look(
        table=(float(table[0]), float(table[1]), float(table[2])),
        light=(float(light[0]), float(light[1]), float(light[2])),
        ambient=float(rng.uniform(0.41, 0.49)),
        diffuse=float(rng.uniform(0.57, 0.67)),
    )
    return Layout(
        shapes=shapes,
        colours=colours,
        objects=_stand(points[:objects], shapes, yaw),
        plate_shapes=("round",) * plates,
        plate_colours=plate_colours,
        plates=points[objects:],
        start=start,
        instruction=phrase(shapes[0], colours[0], plate_colours[0]),
        look=look,
    )


def _stand(points: NDArray[np.float64], shapes: tuple[str, ...], yaw: NDArray[np.float64]) -> NDArray[np.float64]:
    heights = np.array([HALF_HEIGHT[shape] for shape in shapes])
    return np.concatenate([points, heights[:, None], yaw[:, None]], 1)


def _vision(setting: str, layout: Layout, rng: np.random.Generator) -> Layout:
    look = layout.look
    if setting == "texture":
        texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
        look = replace(look, texture=texture, texture_seed=int(rng.integers(2**31)))
    elif setting == "noise":
        look = replace(look, noise=float(rng.uniform(0.03, 0.08)), noise_seed=int(rng.integers(2**31)))
    elif setting == "light":
        angle, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.8)
        flat = np.sqrt(1 - height**2)
        strength = float(rng.choice([0.55, 1.3]))
        tint = 1 + rng.uniform(-0.2, 0.2, 3)
        look = replace(
            look,
            light=(float(flat * np.cos(angle)), float(flat * np.sin(angle)), float(height)),
            ambient=look.ambient * strength,
            diffuse=look.diffuse * strength,
            tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        )
    else:
        sign = rng.choice([-1.0, 1.0], 5)
        shift = sign * rng.uniform(0.5, 1.0, 5) * (0.2, 0.12, 0.02, 0.02, 0.07)
        look = replace(look, camera=tuple(float(value) for value in shift))
    return replace(layout, look=look)


def _semantic(setting: str, rng: np.random.Generator) -> Layout:
    if setting == "distractor_object":
        return draw(rng, objects=3)
    if setting == "distractor_plate":
        return draw(rng, plates=3)
    layout = draw(rng)
    colours, shapes, plate_colours = list(layout.colours), list(layout.shapes), list(layout.plate_colours)
    plate_shapes, template = list(layout.plate_shapes), "put the {o} on the {p} plate"
    if setting == "object":
        novelty = int(rng.integers(3))
        if novelty != 1:
            colours[0] = _COLOURS[4 + int(rng.integers(2))]
        if novelty != 0:
            shapes[0] = UNSEEN_SHAPES[int(rng.integers(len(UNSEEN_SHAPES)))]
    elif setting == "plate":
        novelty = int(rng.integers(3))
        if novelty != 1:
            plate_colours[0] = _PLATES[4 + int(rng.integers(2))]
        if novelty != 0:
            plate_shapes[0] = "square"
    else:
        template = PARAPHRASES[int(rng.integers(len(PARAPHRASES)))]
    return replace(
        layout,
        colours=tuple(colours),
        shapes=tuple(shapes),
        objects=_stand(layout.objects[:, :2], tuple(shapes), layout.objects[:, 3]),
        plate_colours=tuple(plate_colours),
        plate_shapes=tuple(plate_shapes),
        instruction=phrase(shapes[0], colours[0], plate_colours[0], template),
    )


def _execution(setting: str, rng: np.random.Generator) -> Layout:
    if setting == "position":
        return draw(rng, low=SQUARE + 0.005, high=REACH)
    layout = draw(rng)
    if setting == "pose":
        side = rng.choice([-1.0, 1.0], 3)
        start = np.array(
            [*(side[:2] * rng.uniform(0.07, 0.13, 2)), rng.uniform(0.1, 0.18), side[2] * rng.uniform(0.2, 0.4)]
        )
        return replace(layout, start=start)
    while True:
        point = rng.uniform(-SQUARE, SQUARE, 2)
        away = np.linalg.norm(point - layout.objects[:, :2], axis=1) > OBJECT_GAP
        if away.all() and (np.linalg.norm(point - layout.plates, axis=1) > OBJECT_PLATE_GAP).all():
            return replace(layout, move=np.array([*point, *layout.objects[0, 2:]]))


@lru_cache(maxsize=4096)
def layout(suite: str, split: str, index: int) -> Layout:
    """The layout of a scenario of a concrete suite (`train` or `axis/setting`); the same on every machine."""
    digest = hashlib.sha256(f"tabletop/{suite}/{split}".encode()).digest()
    key = np.array([int.from_bytes(digest[:8], "little"), index], np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key))
    scene = _vary(suite, rng)
    for array in (scene.objects, scene.plates, scene.start):
        array.setflags(write=False)
    return scene


def _vary(suite: str, rng: np.random.Generator) -> Layout:
    if suite == "train":
        return draw(rng)
    axis, setting = suite.split("/")
    if axis == "vision":
        return _vision(setting, draw(rng), rng)
    return _semantic(setting, rng) if axis == "semantic" else _execution(setting, rng)
