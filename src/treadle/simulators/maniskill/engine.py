# ManiSkill is in an environment of its own.
# pyright: reportMissingImports=false

"""One ManiSkill environment of one or more scenes, stepped and drawn row by row. The one file that touches tensors.

On the CPU ManiSkill has one scene per environment; on CUDA one environment has them all. Shapes: R rows of the
environment, n rows addressed, P proprioception, S privileged state.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mani_skill.utils import common
from numpy.typing import NDArray

from treadle.data.scenario import Scenario
from treadle.errors import SimulatorError
from treadle.simulators.coarse import cell_size
from treadle.simulators.maniskill.coarse import coarsen_scene
from treadle.simulators.maniskill.task import Task, to_controller

Rows = NDArray[np.intp]


@dataclass(slots=True)
class Moment:
    """What the addressed rows are like after a reset or a step."""

    score: NDArray[np.float32]
    """[n]"""
    success: NDArray[np.bool_]
    """[n]"""
    state: NDArray[np.float32]
    """[n, S]"""


class Engine:
    """Rows that are addressed move, the others stand still, whatever ManiSkill does with its scenes."""

    def __init__(self, task: Task, rows: int, image_size: int | None, device: str, coarse: bool = False) -> None:
        """`image_size`: of the sides of frames; None for the camera's own. `coarse`: draw meshes without details
        smaller than a pixel.
        """
        self.task = task
        pixels = image_size or min(task.camera_size or (0,))
        self._cell = cell_size(pixels) if coarse else None
        self.environment = task.make(rows, pixels, backend(device))
        self._size = image_size
        self._rows = rows
        self._coarse: Any = None
        """The scene whose meshes were replaced."""

    def reset(self, row: int, scenario: Scenario) -> Moment:
        """Put a row at the start of a scenario. Rows are reset one at a time, so that a start depends on its own seed
        alone.
        """
        environment = self.environment
        seed, options = self.task.start(scenario)
        if self._rows > 1:
            options = {**options, "env_idx": torch.tensor([row], device=environment.device)}
        seen, info = environment.reset(seed=seed, options=options)
        action = torch.zeros((self._rows, 7), device=environment.device)
        return self._moment(seen, action, info, np.array([row]))

    def step(self, rows: Rows, actions: NDArray[np.float32]) -> Moment:
        """Play one action [n, 7] in each of `rows`."""
        environment = self.environment
        command = np.zeros((self._rows, 7), np.float32)
        command[rows] = to_controller(actions, self.task.scale)
        idle = np.setdiff1d(np.arange(self._rows), rows)
        before = common.torch_clone_dict(environment.get_state_dict()) if len(idle) else None
        elapsed = environment.elapsed_steps.clone()
        action = torch.as_tensor(command, device=environment.device)
        seen, _, _, _, info = environment.step(action)
        moment = self._moment(seen, action, info, rows)
        if before is not None:
            self._restore(before, elapsed, idle)
        return moment

    def proprioception(self, rows: Rows) -> NDArray[np.float32]:
        """[n, 8] position of the tool (metres), its orientation (quaternion, w first), and the sum of the fingers'
        travel (metres).
        """
        agent = self.environment.agent
        tool = agent.tcp.pose.raw_pose
        fingers = agent.robot.get_qpos()[:, -2:].sum(1, keepdim=True)
        return torch.cat([tool, fingers], 1).cpu().numpy()[rows].astype(np.float32)

    def draw(self, camera: str) -> Any:
        """What a camera sees now: a uint8 tensor [R, H, W, 3] on the device that rendered it."""
        self._coarsen()
        environment = self.environment
        environment.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        if camera not in environment.scene.sensors:
            raise SimulatorError(
                f"maniskill: {self.task.name} has no camera {camera!r}; it has {', '.join(environment.scene.sensors)}"
            )
        sensor = environment.scene.sensors[camera]
        sensor.capture()
        textures = sensor.get_obs(rgb=True, depth=False, position=False, segmentation=self.task.segmentation)
        return self.task.picture(environment, textures, self._size)

    def portrait(self, row: int) -> NDArray[np.uint8]:
        """The view for people, [H, W, 3]."""
        self._coarsen()
        return self.environment.render_rgb_array()[row].cpu().numpy()

    def close(self) -> None:
        """Free the scenes."""
        self.environment.close()

    def _coarsen(self) -> None:
        """Before anything is drawn: ManiSkill makes another scene whenever it reconfigures itself."""
        if self._cell and self._coarse is not self.environment.scene:
            self._coarse = self.environment.scene
            for scene in self._coarse.sub_scenes:
                coarsen_scene(scene, self._cell)

    def _moment(self, seen: dict[str, Any], action: Any, info: dict[str, Any], rows: Rows) -> Moment:
        state = common.flatten_state_dict(seen, use_torch=True, device=self.environment.device)
        return Moment(
            score=self.task.score(self.environment, seen, action, info).cpu().numpy()[rows].astype(np.float32),
            success=info["success"].cpu().numpy()[rows].astype(np.bool_),
            state=state.cpu().numpy()[rows].astype(np.float32),
        )

    def _restore(self, state: dict[str, Any], elapsed: Any, idle: Rows) -> None:
        """Put rows that were not addressed back to where they were: ManiSkill moves all of its scenes at once."""
        environment = self.environment
        rows = torch.as_tensor(idle, device=environment.device)
        mixed = _mix(environment.get_state_dict(), state, rows)
        environment.set_state_dict(mixed)
        if "controller" in mixed:
            environment.agent.set_controller_state(mixed["controller"])
        environment.elapsed_steps[rows] = elapsed[rows]


def backend(device: str) -> dict[str, str]:
    """What ManiSkill computes and draws with. Raises SimulatorError where there is no GPU for it."""
    if device == "cuda":
        if not torch.cuda.is_available():
            raise SimulatorError("maniskill: simulator.options.device is 'cuda', and torch finds no GPU; use 'cpu'")
        return {"sim_backend": "physx_cuda", "render_backend": "gpu"}
    return {"sim_backend": "physx_cpu", "render_backend": "gpu" if torch.cuda.is_available() else "cpu"}


def _mix(now: Any, before: Any, rows: Any) -> Any:
    """`now` with the given rows as `before`."""
    if isinstance(now, dict):
        return {key: _mix(value, before[key], rows) for key, value in now.items()}
    mixed = now.clone()
    mixed[rows] = before[rows]
    return mixed
