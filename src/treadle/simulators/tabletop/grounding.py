# mujoco ships no stubs for its compiled modules.
# pyright: reportAttributeAccessIssue=false

"""Random scenes with the positions of everything in them, for teaching a policy's vision what words refer to."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from typing import ClassVar

import mujoco
import numpy as np
from numpy.typing import NDArray

from treadle.simulators.tabletop import camera
from treadle.simulators.tabletop.layout import OBJECT_COLOURS, PLATE_COLOURS, draw, phrase
from treadle.simulators.tabletop.scene import OPENING, PLATE_THICKNESS, SHAPES, build, place
from treadle.simulators.tabletop.task import PROPRIOCEPTION_DIM

COLOURS = (*OBJECT_COLOURS, *PLATE_COLOURS)
"""Names of the indices in `Scenes.classes`."""

_HELD = 0.3
_BATCH = 32
# Half of each shape's width between the fingers.
_HALF_WIDTH = {"cube": 0.02, "cylinder": 0.021, "prism": 0.0235, "brick": 0.025}


@dataclass(frozen=True, slots=True)
class Scenes:
    """N scenes of the training distribution, two objects and two plates in each."""

    things: ClassVar = ("object", "second_object", "plate", "second_plate")
    asked: ClassVar = ("object", "plate")
    class_count: ClassVar = len(COLOURS)
    frames: NDArray[np.uint8]
    """[N, H, W, 3]"""
    proprioception: NDArray[np.float32]
    """[N, 7], as `task.proprioception` gives it."""
    classes: NDArray[np.int64]
    """[N, 4], colours of the objects, then of the plates, as an index in COLOURS."""
    positions: NDArray[np.float32]
    """[N, 4, 3], metres, in the order of `classes`; of plates the upper side."""
    shapes: NDArray[np.intp]
    """[N, 2], of the objects, as an index in SHAPES."""
    held: NDArray[np.intp]
    """[N], which object the gripper holds in the air, or -1."""

    def ask(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """A random valid instruction for each row, and the things [rows, 2] of `classes` that it names."""
        chosen = rng.integers(2, size=(len(rows), 2))
        named = chosen + np.array([0, 2])
        pairs = zip(rows, chosen[:, 0], np.take_along_axis(self.classes[rows], named, 1), strict=True)
        texts = [
            phrase(SHAPES[self.shapes[row, o]], COLOURS[first], COLOURS[second]) for row, o, (first, second) in pairs
        ]
        return texts, named


def sample_scenes(count: int, seed: int, *, image_size: int = 64, threads: int = 0) -> Scenes:
    """`count` random scenes; the gripper is anywhere over the table, and in 30 % of them holds an object in the air.

    The same for any number of threads (0 takes all cores); scene i does not depend on `count`.
    """
    scenes = Scenes(
        frames=np.zeros((count, image_size, image_size, 3), np.uint8),
        proprioception=np.zeros((count, PROPRIOCEPTION_DIM), np.float32),
        classes=np.zeros((count, 4), np.int64),
        positions=np.zeros((count, 4, 3), np.float32),
        shapes=np.zeros((count, 2), np.intp),
        held=np.full(count, -1, np.intp),
    )
    scenes.positions[:, 2:, 2] = PLATE_THICKNESS
    workers = threads or cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda share: _fill(scenes, share.start, share.stop, seed, image_size), shares(count, workers)))
    return scenes


def shares(rows: int, parts: int) -> list[slice]:
    """Rows in contiguous parts of about the same size."""
    return [slice(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)]


def _fill(scenes: Scenes, start: int, stop: int, seed: int, size: int) -> None:
    caster, rays = camera.Caster(size), camera.standard_rays(size)
    spare: dict[mujoco.MjModel, mujoco.MjData] = {}
    for first in range(start, stop, _BATCH):
        batch = range(first, min(first + _BATCH, stop))
        frames = np.zeros((len(batch), size * size, 3), np.uint8)
        casts, palettes, lights = [], [], []
        for row, index in enumerate(batch):
            rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
            layout = draw(rng)
            model = build(layout.shapes, layout.plate_shapes)
            if model not in spare:
                spare[model] = mujoco.MjData(model)
            data = spare[model]
            tool = np.array([*rng.uniform(-0.18, 0.18, 2), rng.uniform(0.018, 0.18), rng.uniform(-0.15, 0.15)])
            objects, finger = layout.objects.copy(), float(rng.uniform(0, OPENING))
            if rng.random() < _HELD:
                held = int(rng.integers(2))
                # Plates and the other object stay below what is carried.
                tool[:2] *= 0.85
                tool[2] = rng.uniform(0.03, 0.11)
                objects[held, :2] = tool[:2] + rng.uniform(-0.008, 0.008, 2)
                objects[held, 2:] = tool[2] + rng.uniform(-0.006, 0.006), tool[3]
                finger = _HALF_WIDTH[layout.shapes[held]]
                scenes.held[index] = held
            elif rng.random() < 0.5:
                finger = OPENING
            place(data, tool, finger, objects, layout.plates)
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            casts.append(caster.cast(model, data, rays))
            palettes.append(camera.palette(layout))
            lights.append(camera.lighting(layout.look))
            frames[row] = camera.background(layout.look, rays)
            scenes.positions[index, :2] = objects[:, :3]
            scenes.positions[index, 2:, :2] = layout.plates
            scenes.classes[index] = [COLOURS.index(name) for name in (*layout.colours, *layout.plate_colours)]
            scenes.shapes[index] = [SHAPES.index(name) for name in layout.shapes]
            closed = scenes.held[index] >= 0 or (finger < OPENING and rng.random() < 0.5)
            opening = finger / OPENING
            scenes.proprioception[index] = [*tool[:3], np.sin(tool[3]), np.cos(tool[3]), opening, closed]
        camera.draw(frames, casts, np.stack(palettes), np.stack(lights))
        scenes.frames[batch.start : batch.stop] = frames.reshape(-1, size, size, 3)
