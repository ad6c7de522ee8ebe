# mujoco and robosuite ship no types, and are in the simulator's own environment alone.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

"""robosuite's arm and its operational space controller, without what robosuite looks up and measures again before every
physics step: the same numbers to the last bit.
"""

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

_READS_DATA = tuple(int(part) for part in mujoco.__version__.split(".")[:2]) >= (3, 5)
"""Until 3.4, `mj_fullM` took the matrix to fill and the sparse one of the data, from 3.5 on the data and the matrix."""


class Arm:
    """The one arm of an environment. It takes the place of `robot.control`."""

    def __init__(self, env: Any, forward: Callable[[], None]) -> None:
        """`forward`: brings MuJoCo's data up to date where it is not."""
        self._sim, self._forward = env.sim, forward
        (robot,) = env.robots
        self._controller, self._gripper = robot.controller, robot.gripper
        self._model = model = env.sim.model._model  # noqa: SLF001 robosuite hides MuJoCo's own model there
        self._site = model.site(self._controller.eef_name).id
        self._joints = robot._ref_joint_actuator_indexes  # noqa: SLF001
        self._low, self._high = model.actuator_ctrlrange[self._joints].T
        self._fingers = [model.actuator(name).id for name in self._gripper.actuators]
        low, high = model.actuator_ctrlrange[self._fingers].T
        self._middle, self._reach = 0.5 * (high + low), 0.5 * (high - low)
        self._jacobians = np.zeros((2, 3, model.nv))
        self._masses = np.zeros((model.nv, model.nv))
        self._controller.update = self._measure

    def drive(self, action: NDArray[np.float64], first: bool) -> None:
        """Set the motors for a physics step of an action [7]; its `first` one takes the action as the new goal."""
        dimensions = self._controller.control_dim
        if first:
            self._controller.set_goal(action[:dimensions])
        torques, control = self._controller.run_controller(), self._sim.data.ctrl
        control[self._joints] = np.clip(torques, self._low, self._high)
        control[self._fingers] = self._middle + self._reach * self._gripper.format_action(action[dimensions:])

    def _read_masses(self, data: Any) -> None:
        if _READS_DATA:
            mujoco.mj_fullM(self._model, data, self._masses)
        else:
            mujoco.mj_fullM(self._model, self._masses, data.qM)

    def _measure(self, force: bool = False) -> None:
        """In place of the controller's `update`."""
        controller, data, site = self._controller, self._sim.data._data, self._site  # noqa: SLF001
        if not (controller.new_update or force):
            return
        self._forward()
        joints, speeds, (along, about) = controller.qvel_index, data.qvel, self._jacobians
        mujoco.mj_jacSite(self._model, data, along, about, site)
        self._read_masses(data)
        controller.ee_pos = data.site_xpos[site].copy()
        controller.ee_ori_mat = data.site_xmat[site].reshape(3, 3).copy()
        controller.ee_pos_vel, controller.ee_ori_vel = np.dot(along, speeds), np.dot(about, speeds)
        controller.joint_pos, controller.joint_vel = data.qpos[controller.qpos_index], speeds[joints]
        controller.J_pos, controller.J_ori = along[:, joints], about[:, joints]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = self._masses[joints, :][:, joints]
        controller.new_update = False
