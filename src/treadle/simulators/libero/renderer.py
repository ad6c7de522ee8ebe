# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

"""Pictures of LIBERO's scenes, off screen.

`published` draws as robosuite does; `fast` leaves out shadows, reflections, multisampling, and details of meshes that
are smaller than a pixel: a scene has 380 thousand triangles.
"""

from copy import copy
from typing import Any, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from treadle.errors import SimulatorError
from treadle.simulators.coarse import cell_size, coarsen

Profile = Literal["published", "fast"]


class Screen:
    """The process's OpenGL context; all renderers of a simulator draw in it."""

    def __init__(self) -> None:
        """Raises SimulatorError where there is no OpenGL."""
        try:
            self._context = mujoco.GLContext(64, 64)
            self._context.make_current()
        except (ImportError, RuntimeError, AttributeError) as error:
            raise SimulatorError(
                f"libero: OpenGL cannot draw off screen here: {error}; install libosmesa6, or libegl1 with a driver, "
                "and set MUJOCO_GL to osmesa or egl"
            ) from error

    def use(self) -> None:
        """Draw in it from now on, in this thread."""
        self._context.make_current()

    def describe(self) -> str:
        """What draws in it, and the versions of OpenGL and of its driver."""
        from OpenGL import GL

        self.use()
        return ", ".join(GL.glGetString(name).decode() for name in (GL.GL_RENDERER, GL.GL_VERSION))

    def close(self) -> None:
        """Release it."""
        self._context.free()


class Renderer:
    """Draws the scene of one model."""

    def __init__(self, screen: Screen, model: Any, profile: Profile, size: int) -> None:
        """`size`: pixels of the largest picture; a larger one later is drawn too, after the buffer has grown."""
        self._screen, self._lit = screen, model
        if profile == "fast":
            model = copy(model)
            _coarsen(model, cell_size(size))
        self._model = model
        view = model.vis.global_
        view.offwidth, view.offheight = max(size, view.offwidth), max(size, view.offheight)
        if profile == "fast":
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        screen.use()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if profile == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._options, self._nothing = mujoco.MjvOption(), mujoco.MjvPerturb()
        # Collision shapes are group 0, what is seen is group 1.
        self._options.geomgroup[0], self._options.geomgroup[1] = 0, 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def draw(self, data: Any, camera: str, size: int) -> NDArray[np.uint8]:
        """A picture [size, size, 3] as OpenGL gives it, last row first."""
        self._screen.use()
        self._model.site_rgba[:] = self._lit.site_rgba  # a burner that is on is seen
        if size > min(self._context.offWidth, self._context.offHeight):
            mujoco.mjr_resizeOffscreen(size, size, self._context)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera.fixedcamid = self._model.camera(camera).id
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, self._nothing, self._camera, every, self._scene)
        viewport, frame = mujoco.MjrRect(0, 0, size, size), np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(frame, None, viewport, self._context)
        return frame

    def close(self) -> None:
        """Release its textures and buffers."""
        self._screen.use()
        self._context.free()


def _coarsen(model: Any, cell: float) -> None:
    """Leave out details of a model's meshes that are smaller than `cell` metres. For drawing only: its shapes no longer
    collide as they did.
    """
    for mesh in range(model.nmesh):
        vertices = slice(model.mesh_vertadr[mesh], model.mesh_vertadr[mesh] + model.mesh_vertnum[mesh])
        begin, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        places, kept = coarsen(model.mesh_vert[vertices], model.mesh_face[begin : begin + count], cell)
        model.mesh_vert[vertices] = model.mesh_vert[vertices][places]
        for faces in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
            faces[begin : begin + len(kept)] = faces[begin : begin + count][kept]
        model.mesh_facenum[mesh] = len(kept)
