# mujoco ships no stubs for its compiled modules.
# pyright: reportAttributeAccessIssue=false

"""A camera without OpenGL: rays cast by MuJoCo, Lambert shading from normals, colours from a palette per slot.

The table is not cast: it is a plane, so where each ray meets it is known beforehand, and its shade is painted once an
episode as a background over which only what stands on the table is drawn.
"""

from dataclasses import dataclass
from functools import cache

import mujoco
import numpy as np
from numpy.typing import NDArray

from treadle.simulators.tabletop.layout import OBJECT_COLOURS, PLATE_COLOURS, Layout, Look
from treadle.simulators.tabletop.scene import FIRST_OBJECT_GEOM, MAX_OBJECTS, MAX_PLATES, STEM_GEOM

AZIMUTH, ELEVATION, DISTANCE = 0.0, 1.0, 0.9
"""The camera stands in front of the table (radians about z from -y; radians above the table; metres to its target)."""
TARGET = (0.0, 0.012, 0.0)
HALF_FIELD = 0.222
"""Tangent of half of the field of view."""
_GRIPPER = ((0.42, 0.43, 0.47), (0.30, 0.31, 0.34), (0.62, 0.63, 0.68), (0.62, 0.63, 0.68))
GEOMS = FIRST_OBJECT_GEOM + MAX_OBJECTS + MAX_PLATES
"""Most geoms that a scene can have."""
_NOT_TABLE = np.array([1, 0, 0, 0, 0, 0], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """The rays of one camera, row by row from the top left pixel."""

    size: int
    origin: NDArray[np.float64]
    """[3]"""
    directions: NDArray[np.float64]
    """[size * size, 3], unit length."""
    ground: NDArray[np.float64]
    """[size * size, 2], where they meet the table."""
    axes: NDArray[np.float64]
    """[3, 3], right, up and forward in rows."""


@cache
def standard_rays(size: int) -> Rays:
    """The rays of the unshifted camera."""
    return cast_rays(size, Look().camera)


def cast_rays(size: int, shift: tuple[float, float, float, float, float]) -> Rays:
    """The rays of a camera shifted as `Look.camera` says."""
    azimuth, elevation = AZIMUTH + shift[0], ELEVATION + shift[1]
    forward = np.array([-np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), -np.sin(elevation)])
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    axes = np.stack([right, np.cross(right, forward), forward])
    origin = np.array(TARGET) + np.array([shift[2], shift[3], 0.0]) - forward * DISTANCE * (1 + shift[4])
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    across, down = np.meshgrid(grid * HALF_FIELD, -grid * HALF_FIELD)
    directions = across[..., None] * axes[0] + down[..., None] * axes[1] + axes[2]
    directions = directions.reshape(-1, 3)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ground = origin[:2] + directions[:, :2] * (origin[2] / -directions[:, 2:])
    return Rays(size, origin, directions, ground, axes)


def rays_of(look: Look, size: int) -> Rays:
    """The rays that a look asks for; shared where the camera is not shifted."""
    return standard_rays(size) if look.camera == Look().camera else cast_rays(size, look.camera)


def palette(layout: Layout) -> NDArray[np.float32]:
    """[geoms, 3] linear colour of each geom id; the table's is unused."""
    colours = np.zeros((GEOMS, 3), np.float32)
    colours[1:FIRST_OBJECT_GEOM] = _GRIPPER
    names = [OBJECT_COLOURS[name] for name in layout.colours] + [PLATE_COLOURS[name] for name in layout.plate_colours]
    colours[FIRST_OBJECT_GEOM : FIRST_OBJECT_GEOM + len(names)] = names
    return colours


def texture(look: Look, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """[N, 3] colours of the table at points [N, 2]; [1, 3] for a plain one."""
    plain = np.array(look.table, np.float32)
    if look.texture == "plain":
        return plain[None]
    rng = np.random.Generator(np.random.Philox(look.texture_seed))
    first = np.clip(plain + rng.uniform(-0.25, 0.2, 3), 0.1, 0.9)
    second = np.clip(first + rng.choice([-1, 1]) * rng.uniform(0.15, 0.3, 3), 0.05, 0.95)
    angle, scale = rng.uniform(0, np.pi), rng.uniform(0.03, 0.07)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    u, v = ((points @ turn + rng.uniform(-1, 1, 2)) / scale).T
    if look.texture == "checker":
        mix = (np.floor(u) + np.floor(v)) % 2
    elif look.texture == "stripes":
        mix = np.floor(u) % 2
    elif look.texture == "noise":
        lattice = rng.random((32, 32))
        i, j = np.floor(u).astype(int), np.floor(v).astype(int)
        s, t = u - i, v - j
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        i, j, k, m = i % 32, j % 32, (i + 1) % 32, (j + 1) % 32
        mix = (lattice[i, j] * (1 - s) + lattice[k, j] * s) * (1 - t) + (
            lattice[i, m] * (1 - s) + lattice[k, m] * s
        ) * t
    else:
        rings = u * 0.8 + 0.5 * np.sin(v * 0.35 + rng.uniform(0, 6)) + 0.15 * np.sin(v * 1.7)
        mix = (rings % 1) ** 2
    return (first + (second - first) * mix[:, None]).astype(np.float32)


def background(look: Look, rays: Rays) -> NDArray[np.uint8]:
    """[size * size, 3] the lit table; [1, 3] for a plain one."""
    level = (look.ambient + look.diffuse * look.light[2]) * np.array(look.tint)
    colours = texture(look, rays.ground) * (255 * level).astype(np.float32)
    return np.minimum(colours, 255).astype(np.uint8)


def lighting(look: Look) -> NDArray[np.float32]:
    """[7] what shading needs of a look: direction toward the light times diffuse, ambient, tint."""
    light = np.array(look.light) * look.diffuse
    return np.array([*light, look.ambient, *look.tint], np.float32)


class Caster:
    """Casts the rays of one thread, reusing its buffers."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._mask = np.zeros((size, size), np.bool_)
        self._ids = np.zeros(size * size, np.int32)
        self._distances = np.zeros(size * size)
        self._normals = np.zeros(size * size * 3)
        self._boxes: dict[mujoco.MjModel, NDArray[np.float64]] = {}

    def _corners(self, model: mujoco.MjModel, data: mujoco.MjData) -> NDArray[np.float64]:
        """[geoms - 1, 8, 3] corners of the bounding box of each geom but the table."""
        if model not in self._boxes:
            centre, half = model.geom_aabb[1:, None, :3], model.geom_aabb[1:, None, 3:]
            signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
            self._boxes[model] = centre + signs * half
        rotations = data.geom_xmat[1:].reshape(-1, 3, 3)
        return self._boxes[model] @ rotations.transpose(0, 2, 1) + data.geom_xpos[1:, None]

    def _inside(self, corners: NDArray[np.float64], rays: Rays) -> NDArray[np.intp]:
        """Pixels [k] in the rectangles around boxes in the picture, whose corners are [boxes, 8, 3]."""
        mask, size = self._mask, self._size
        mask[:] = False
        view = (corners - rays.origin) @ rays.axes.T
        picture = view[:, :, :2] / view[:, :, 2:] * (size / 2 / HALF_FIELD)
        low, high = np.floor(picture.min(1) + size / 2), np.ceil(picture.max(1) + size / 2)
        # Rows count downward, the picture's second axis points up.
        boxes = np.stack([size - high[:, 1], size - low[:, 1], low[:, 0], high[:, 0]], 1)
        for top, bottom, left, right in np.clip(boxes, 0, size).astype(int).tolist():
            mask[top:bottom, left:right] = True
        return np.flatnonzero(mask)

    def cast(self, model: mujoco.MjModel, data: mujoco.MjData, rays: Rays) -> "Cast":
        """Pixels [k] that show something else than the table, the geom ids [k] there and the normals [k, 3].

        Only rays near a geom are cast: those inside the rectangle around its bounding box in the picture.
        """
        pixels = self._inside(self._corners(model, data), rays)
        count = len(pixels)
        ids, normals = self._ids[:count], self._normals[: 3 * count]
        directions = rays.directions[pixels].ravel()
        mujoco.mj_multiRay(
            model, data, rays.origin, directions, _NOT_TABLE, 1, -1, ids, self._distances[:count], normals, count, 10.0
        )
        hit = np.flatnonzero(ids >= 0)
        return pixels[hit], ids[hit], normals.reshape(-1, 3)[hit]

    def shadow(
        self, model: mujoco.MjModel, data: mujoco.MjData, rays: Rays, light: NDArray[np.float64]
    ) -> NDArray[np.intp]:
        """Pixels [k] where a far lamp in direction `light` does not reach the table; the stem throws no shadow.

        Only rays near a geom's shadow are cast, as in `cast`.
        """
        lamp = light * 3.0
        thrown = np.delete(self._corners(model, data), STEM_GEOM - 1, axis=0) - lamp
        # Where the lamp's rays through the corners meet the table.
        pixels = self._inside(lamp + thrown * (-lamp[2] / thrown[:, :, 2:]), rays)
        count = len(pixels)
        ids = self._ids[:count]
        toward = np.c_[rays.ground[pixels], np.zeros(count)] - lamp
        toward /= np.linalg.norm(toward, axis=1, keepdims=True)
        mujoco.mj_multiRay(
            model, data, lamp, toward.ravel(), _NOT_TABLE, 1, -1, ids, self._distances[:count], None, count, 10.0
        )
        return pixels[(ids > 0) & (ids != STEM_GEOM)]


Cast = tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.float64]]
"""What `Caster.cast` returns."""


def shade(
    colours: NDArray[np.float32], normals: NDArray[np.float32], light: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Lambert shading in units of 255: colours [k, 3], normals [k, 3], lights [k, 7] as `lighting` gives them."""
    level = np.maximum(np.einsum("ij,ij->i", normals, light[:, :3]), 0) + light[:, 3]
    return colours * light[:, 4:] * (255 * level)[:, None]


def draw(
    frames: NDArray[np.uint8], casts: list[Cast], palettes: NDArray[np.float32], lights: NDArray[np.float32]
) -> None:
    """Draw what was cast for n slots over their backgrounds `frames` [n, size * size, 3], in place.

    Palettes [n, geoms, 3] as `palette` gives them, lights [n, 7] as `lighting` does.
    """
    owner = np.repeat(np.arange(len(casts)), [len(pixels) for pixels, _, _ in casts])
    pixels, ids, normals = (np.concatenate(parts) for parts in zip(*casts, strict=True))
    shaded = shade(palettes[owner, ids], normals.astype(np.float32), lights[owner])
    frames[owner, pixels] = np.minimum(shaded, 255).astype(np.uint8)


def draw_noise(frame: NDArray[np.uint8], look: Look, step: int) -> None:
    """Add the pixel noise of control step `step` to one frame [size * size, 3], in place."""
    rng = np.random.Generator(np.random.Philox(key=np.array([look.noise_seed, step], np.uint64)))
    noise = rng.standard_normal(frame.shape, np.float32) * np.float32(255 * look.noise)
    frame[:] = np.clip(frame + noise, 0, 255).astype(np.uint8)
    # Salt and pepper: a sensor's dead pixels.
    dead = rng.random(frame.shape[0]) < look.noise / 8
    frame[dead] = rng.choice(np.array([0, 255], np.uint8), (int(dead.sum()), 1))


def portrait(
    model: mujoco.MjModel, data: mujoco.MjData, layout: Layout, size: int, samples: int = 2
) -> NDArray[np.uint8]:
    """A frame for people [size, size, 3]: supersampled, with a shadow cast by a second ray toward the light."""
    fine, look = size * samples, layout.look
    rays, caster = rays_of(look, fine), Caster(fine)
    pixels, ids, normals = caster.cast(model, data, rays)
    frame = np.zeros((fine * fine, 3), np.float32)
    frame[:] = background(look, rays)
    frame[caster.shadow(model, data, rays, np.array(look.light))] *= look.ambient / (
        look.ambient + look.diffuse * look.light[2]
    )
    light = np.broadcast_to(lighting(look), (len(ids), 7))
    frame[pixels] = shade(palette(layout)[ids], normals.astype(np.float32), light)
    grid = frame.reshape(fine, fine, 3)
    soft = sum(grid[i::samples, j::samples] for i in range(samples) for j in range(samples)) / samples**2
    return np.clip(soft, 0, 255).astype(np.uint8)
