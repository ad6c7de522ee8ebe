# mujoco ships no stubs for its compiled modules.
# pyright: reportAttributeAccessIssue=false

import mujoco
import numpy as np
import pytest

from treadle.simulators.tabletop import camera
from treadle.simulators.tabletop.layout import layout
from treadle.simulators.tabletop.scene import OPENING, build, place


@pytest.mark.parametrize("suite", ["train", "semantic/object", "vision/camera"])
def test_casting_near_geoms_only_misses_nothing(suite: str):
    for index in range(6):
        scene = layout(suite, "train", index)
        model = build(scene.shapes, scene.plate_shapes)
        data = mujoco.MjData(model)
        place(data, scene.start, OPENING, scene.objects, scene.plates)
        mujoco.mj_forward(model, data)
        rays = camera.rays_of(scene.look, 64)
        pixels, ids, _ = camera.Caster(64).cast(model, data, rays)
        found = np.zeros(64 * 64, np.int32)
        found[pixels] = ids
        every, distances = np.zeros(64 * 64, np.int32), np.zeros(64 * 64)
        mujoco.mj_multiRay(
            model, data, rays.origin, rays.directions.ravel(), None, 1, -1, every, distances, None, 64 * 64, 10.0
        )
        assert (found == every).all()


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
