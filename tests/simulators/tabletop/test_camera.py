# mujoco ships no stubs for its compiled modules.
# pyright: reportAttributeAccessIssue=false

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from treadle.simulators.tabletop import camera
from treadle.simulators.tabletop.layout import Layout, layout
from treadle.simulators.tabletop.scene import OPENING, STEM_GEOM, build, place


@pytest.fixture(params=["train", "semantic/object", "vision/camera", "vision/light"])
def scenes(request: pytest.FixtureRequest) -> list[tuple[Layout, mujoco.MjModel, mujoco.MjData]]:
    return [_place(layout(request.param, "train", index)) for index in range(6)]


def _place(scene: Layout) -> tuple[Layout, mujoco.MjModel, mujoco.MjData]:
    model = build(scene.shapes, scene.plate_shapes)
    data = mujoco.MjData(model)
    place(data, scene.start, OPENING, scene.objects, scene.plates)
    mujoco.mj_forward(model, data)
    return scene, model, data


def _cast_all(
    model: mujoco.MjModel, data: mujoco.MjData, origin: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Ids of the geoms that rays [64 * 64, 3] meet."""
    ids, distances = np.zeros(64 * 64, np.int32), np.zeros(64 * 64)
    mujoco.mj_multiRay(model, data, origin, directions.ravel(), None, 1, -1, ids, distances, None, 64 * 64, 10.0)
    return ids


def test_casting_near_geoms_only_misses_nothing(scenes: list[tuple[Layout, mujoco.MjModel, mujoco.MjData]]):
    for scene, model, data in scenes:
        rays = camera.rays_of(scene.look, 64)
        pixels, ids, _ = camera.Caster(64).cast(model, data, rays)
        found = np.zeros(64 * 64, np.int32)
        found[pixels] = ids
        assert (found == _cast_all(model, data, rays.origin, rays.directions)).all()


def test_shadows_near_geoms_only_miss_nothing(scenes: list[tuple[Layout, mujoco.MjModel, mujoco.MjData]]):
    for scene, model, data in scenes:
        rays, light = camera.rays_of(scene.look, 64), np.array(scene.look.light)
        found = camera.Caster(64).shadow(model, data, rays, light)
        toward = np.c_[rays.ground, np.zeros(64 * 64)] - 3 * light
        ids = _cast_all(model, data, 3 * light, toward / np.linalg.norm(toward, axis=1, keepdims=True))
        every = np.flatnonzero((ids > 0) & (ids != STEM_GEOM))
        assert len(every) > 20
        assert found.tolist() == every.tolist()


def test_rays_meet_the_table_where_they_say():
    rays = camera.standard_rays(64)
    middle = rays.ground.reshape(64, 64, 2)[31:33, 31:33].mean((0, 1))
    assert np.allclose(middle, camera.TARGET[:2], atol=0.002)
    left, right = rays.ground.reshape(64, 64, 2)[32, [0, -1], 0]
    assert left < -0.18
    assert right > 0.18
    top, bottom = rays.ground.reshape(64, 64, 2)[[0, -1], 32, 1]
    assert top > 0.18
    assert bottom < -0.18
