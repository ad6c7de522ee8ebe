# mujoco ships no stubs for its compiled modules.
# pyright: reportAttributeAccessIssue=false

"""The batched simulator: slots stepped and drawn on a pool of threads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import SimulatorError
from treadle.simulators.checks import check_option, check_suite, entry_of
from treadle.simulators.enumeration import Enumeration
from treadle.simulators.protocol import SimulatorSpec, Slots, tool_motions
from treadle.simulators.tabletop import camera, task
from treadle.simulators.tabletop.expert import Expert
from treadle.simulators.tabletop.grounding import Scenes, sample_scenes, shares
from treadle.simulators.tabletop.layout import CONCRETE, SETTINGS, Layout, layout, phrase, words
from treadle.simulators.tabletop.scene import (
    HALF_HEIGHT,
    MAX_OBJECTS,
    OBJECT_QPOS,
    OPENING,
    SHAPES,
    SUBSTEPS,
    TIMESTEP,
    build,
    place,
)

NAME = "tabletop"
LENGTH = 1_000_000
"""Scenarios of every suite and split."""
WORKSPACE = np.array([[-0.19, -0.19, 0.018, -0.6], [0.19, 0.19, 0.2, 0.6]])
"""Lowest and highest commanded x, y, z, yaw."""
_MOVE_STEP = 5
_ACTION_LOW = np.array([-task.TRANSLATION_LIMIT] * 3 + [-task.YAW_LIMIT])
_GRIP = -0.01
"""Commanded finger travel when closed: below zero, for a firmer grip."""


class Tabletop:
    """Put the named object on the named plate: a floating gripper, two objects and two plates, and a camera.

    Actions [7]: dx, dy, dz in metres, droll, dpitch (no effect), dyaw in radians, gripper (> 0.5 opens).
    """

    def __init__(
        self,
        slots: int,
        *,
        horizon: int = 80,
        image_size: int = 64,
        threads: int = 0,
        reward: Literal["shaped", "sparse"] = "shaped",
    ) -> None:
        """`threads` 0 takes all cores. `reward` "sparse" is 1 on success; "shaped" adds 0.1 at the first grasp and the
        difference of `task.potential`.
        """
        check_option("reward", reward, ("shaped", "sparse"))
        self.slots = slots
        self.records = task.Records(slots)
        self.spec = SimulatorSpec(
            name=NAME,
            cameras=("front",),
            height=image_size,
            width=image_size,
            actions=tool_motions(metres=1.0),
            proprioception_dim=task.PROPRIOCEPTION_DIM,
            state_dim=task.STATE_DIM,
            horizon=horizon,
            control_hz=1 / (TIMESTEP * SUBSTEPS),
        )
        self._shaped = reward == "shaped"
        self._playing: list[tuple[mujoco.MjModel, mujoco.MjData, Layout] | None] = [None] * slots
        self._views: list[tuple[NDArray[np.float64], ...]] = [()] * slots
        self._spares: dict[mujoco.MjModel, list[mujoco.MjData]] = {}
        self._rays: list[camera.Rays] = [camera.standard_rays(image_size)] * slots
        pixels = image_size * image_size
        self._background = np.zeros((slots, pixels, 3), np.uint8)
        self._palette = np.zeros((slots, camera.GEOMS, 3), np.float32)
        self._light = np.zeros((slots, 7), np.float32)
        self._threads = threads or cpu_count() or 1
        self._casters = [camera.Caster(image_size) for _ in range(self._threads)]
        self._pool = ThreadPoolExecutor(self._threads, NAME) if self._threads > 1 else None

    def suites(self) -> tuple[str, ...]:
        """`train`, the settings `axis/setting`, and the axes."""
        return (*CONCRETE, *SETTINGS)

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """A million scenarios of a suite and split, lazily; an axis takes its settings in turn.

        Raises ConfigError for an unknown suite.
        """
        check_suite(NAME, suite, split, self.suites())
        members = (suite,) if suite in CONCRETE else [f"{suite}/{setting}" for setting in SETTINGS[suite]]

        def make(place: int) -> Scenario:
            index, member = divmod(place, len(members))
            concrete = members[member]
            return Scenario(NAME, concrete, "put_on_plate", split, index, layout(concrete, split, index).instruction)

        return Enumeration(LENGTH, make)

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """Each object of the scene on each plate of it; the scenario's own wording comes first."""
        scene = layout(scenario.suite, scenario.split, scenario.index)
        objects = zip(scene.shapes, scene.colours, strict=True)
        plain = [phrase(shape, colour, plate) for shape, colour in objects for plate in scene.plate_colours]
        return [scenario.instruction, *plain[1:]]

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> Expert:
        """The scripted expert of these slots."""
        return Expert(self.records, seed, miss_probability=miss_probability)

    def scenes(self, count: int, seed: int) -> Scenes:
        """Random rendered scenes at the size of the camera."""
        return sample_scenes(count, seed, image_size=self.spec.height, threads=self._threads)

    def vocabulary(self) -> Sequence[str]:
        """Every word of the instructions, unseen ones and paraphrases included."""
        return words()

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Put each slot at the start of its scenario."""
        for slot, scenario in zip(slots.tolist(), scenarios, strict=True):
            if scenario.simulator != NAME or scenario.suite not in CONCRETE:
                raise SimulatorError(
                    f"tabletop cannot play scenario {scenario.id} (slot {slot}); take one of scenarios()"
                )
        self._share(lambda _, part: self._reset(slots[part], scenarios[part]), len(slots))

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Play actions [n, C, 7], at most `limits` [n] in each slot, until its success."""
        outcome = Outcome.empty(len(actions), actions.shape[1], task.STATE_DIM)
        played = actions.astype(np.float64)
        self._share(lambda _, part: self._play(slots[part], played[part], limits[part], outcome, part), len(slots))
        return outcome

    def observe(self, slots: Slots, out: Observation) -> None:
        """Write frames, proprioception and state of each slot into row `slot` of `out`."""
        self._share(lambda thread, part: self._observe(thread, slots[part], out), len(slots))

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """Soft frames with shadows, [n, size, size, 3]; much slower than `observe`."""
        frames = np.zeros((len(slots), size, size, 3), np.uint8)

        def draw(_: int, part: slice) -> None:
            for row in range(part.start, part.stop):
                model, data, scene = self._loaded(int(slots[row]))
                mujoco.mj_kinematics(model, data)
                mujoco.mj_comPos(model, data)
                frames[row] = camera.portrait(model, data, scene, size)

        self._share(draw, len(slots))
        return frames

    def close(self) -> None:
        """Stop the threads."""
        if self._pool:
            self._pool.shutdown()

    def _share(self, work: Callable[[int, slice], None], rows: int) -> None:
        """Run `work(thread, rows)` on contiguous shares of the rows, and raise what a thread raised."""
        threads = min(self._threads, rows)
        if self._pool is None or threads <= 1:
            work(0, slice(0, rows))
            return
        list(self._pool.map(work, range(threads), shares(rows, threads)))

    def _loaded(self, slot: int) -> tuple[mujoco.MjModel, mujoco.MjData, Layout]:
        return entry_of(NAME, self._playing, slot)

    def _reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        records = self.records
        for slot, scenario in zip(slots.tolist(), scenarios, strict=True):
            scene = layout(scenario.suite, scenario.split, scenario.index)
            model = build(scene.shapes, scene.plate_shapes)
            data = self._take(slot, model)
            place(data, scene.start, OPENING, scene.objects, scene.plates)
            data.ctrl[:4], data.ctrl[4:] = scene.start, OPENING
            mujoco.mj_forward(model, data)
            self._playing[slot] = model, data, scene
            objects, plates = len(scene.shapes), len(scene.plates)
            for array in (records.qpos, records.qvel, records.plates, records.objects_present, records.plates_present):
                array[slot] = 0
            records.plates[slot, :plates] = scene.plates
            records.objects_present[slot, :objects] = 1
            records.plates_present[slot, :plates] = 1
            records.goal[slot] = scene.start
            records.closed[slot] = records.grasped[slot] = False
            records.half[slot] = HALF_HEIGHT[scene.shapes[0]]
            records.shape[slot] = SHAPES.index(scene.shapes[0])
            records.step[slot] = 0
            self._gather(slot)
            look = scene.look
            self._rays[slot] = camera.rays_of(look, self.spec.height)
            self._background[slot] = camera.background(look, self._rays[slot])
            self._palette[slot] = camera.palette(scene)
            self._light[slot] = camera.lighting(look)
        records.potential[slots] = task.potential(records, slots, np.zeros(len(slots), np.bool_))

    def _take(self, slot: int, model: mujoco.MjModel) -> mujoco.MjData:
        """Fresh data of a model for a slot, whose own data goes back to the spares: making data takes a millisecond."""
        if (old := self._playing[slot]) is not None:
            self._spares.setdefault(old[0], []).append(old[1])
        try:
            data = self._spares.setdefault(model, []).pop()
            mujoco.mj_resetData(model, data)
        except IndexError:
            data = mujoco.MjData(model)
        self._views[slot] = (data.ctrl, data.qpos, data.qvel, data.sensordata)
        return data

    def _gather(self, slot: int) -> None:
        records, (_, qpos, qvel, sensors) = self.records, self._views[slot]
        records.qpos[slot, : len(qpos)] = qpos
        records.qvel[slot, : len(qvel)] = qvel
        objects = len(sensors) // 2
        contact, found = records.contact[slot], sensors > 0
        contact[:objects] = found[:objects]
        contact[MAX_OBJECTS : MAX_OBJECTS + objects] = found[objects:-1]
        contact[-1] = found[-1]

    def _play(
        self, slots: Slots, actions: NDArray[np.float64], limits: NDArray[np.intp], outcome: Outcome, part: slice
    ) -> None:
        records = self.records
        live = np.arange(len(slots))
        deltas = np.clip(actions[:, :, [0, 1, 2, 5]], _ACTION_LOW, -_ACTION_LOW)
        closed = actions[:, :, 6] <= 0.5
        for c in range(actions.shape[1]):
            live = live[limits[live] > c]
            if not len(live):
                return
            rows = slots[live]
            records.goal[rows] = np.clip(records.goal[rows] + deltas[live, c], *WORKSPACE)
            records.closed[rows] = closed[live, c]
            for slot in rows.tolist():
                model, data, scene = self._loaded(slot)
                if scene.move is not None and records.step[slot] == _MOVE_STEP and not records.grasped[slot]:
                    _move(data, scene.move)
                control = self._views[slot][0]
                control[:4] = records.goal[slot]
                control[4:] = _GRIP if records.closed[slot] else OPENING
                mujoco.mj_step(model, data, SUBSTEPS)
                self._gather(slot)
            records.step[rows] += 1
            reward, success = task.judge(records, rows, self._shaped)
            target = part.start + live
            outcome.reward[target, c] = reward
            outcome.success[target, c] = outcome.terminated[target, c] = success
            outcome.state[target, c] = task.state(records, rows, self.spec.horizon)
            live = live[~success]

    def _observe(self, thread: int, slots: Slots, out: Observation) -> None:
        records, size = self.records, self.spec.height
        frames = self._background[slots]
        casts = []
        for slot in slots.tolist():
            model, data, _ = self._loaded(slot)
            # mj_step leaves body poses one substep behind qpos.
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            casts.append(self._casters[thread].cast(model, data, self._rays[slot]))
        camera.draw(frames, casts, self._palette[slots], self._light[slots])
        for i, slot in enumerate(slots.tolist()):
            look = self._loaded(slot)[2].look
            if look.noise:
                camera.draw_noise(frames[i], look, int(records.step[slot]))
        out.frames[slots, 0] = frames.reshape(-1, size, size, 3)
        out.proprioception[slots] = task.proprioception(records, slots)
        out.state[slots] = task.state(records, slots, self.spec.horizon)


def _move(data: mujoco.MjData, pose: NDArray[np.float64]) -> None:
    """Put the named object at pose [4], at rest."""
    data.qpos[OBJECT_QPOS : OBJECT_QPOS + 7] = [*pose[:3], np.cos(pose[3] / 2), 0, 0, np.sin(pose[3] / 2)]
    data.qvel[OBJECT_QPOS : OBJECT_QPOS + 6] = 0
