# mujoco and robosuite ship no types, and are in the simulator's own environment alone.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

"""One task, built once, for as many slots as play it.

robosuite builds a scene in seconds and holds a gigabyte for it, so slots share the scene of their task: each has MuJoCo
data of its own, and what its controllers remember is put in place before it is stepped or drawn.
"""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from treadle.errors import SimulatorError
from treadle.simulators.libero.arm import Arm
from treadle.simulators.libero.conventions import OBJECTS, rotation_vector
from treadle.simulators.libero.shapes import corners
from treadle.simulators.libero.suites import Task, read_states

SEED = 0
"""Of the places of furniture, which initial states do not hold; that of the published evaluation."""
SETTLE = np.array([0.0, 0, 0, 0, 0, 0, -1])
"""The action that lets a scene settle: stand still, gripper open."""
_MEASURED = (
    *("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel"),
    *("J_pos", "J_ori", "J_full", "mass_matrix"),
)
"""What robosuite's controller measures before each physics step and keeps."""


@dataclass(slots=True)
class Place:
    """What a slot has of its own."""

    data: Any
    """robosuite's wrapper of its MjData."""
    goal_rotation: NDArray[np.float64]
    """[3, 3] where the controller holds the hand."""
    gripper: NDArray[np.float64]
    """[2] where the gripper's command has got to; it moves by a hundredth a physics step."""
    started: bool
    """Whether it was stepped since its reset."""


class Interest(NamedTuple):
    """An object that a task is about: a body, or a region, which is a site."""

    is_body: bool
    number: int
    """Of the body or the site."""
    shapes: NDArray[np.intp]
    """What of it others can collide with; a region has none."""


class TaskScene:
    """A task's robosuite environment, without its observations and its renderer."""

    def __init__(self, task: Task) -> None:
        """Takes seconds. Raises SimulatorError where its files are incomplete."""
        self.task = task
        self.states = read_states(task)
        self._env = env = _build(task)
        self.model = env.sim.model._model  # noqa: SLF001 robosuite hides MuJoCo's own model there
        self._robot = env.robots[0]
        self._controller = self._robot.controller
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._start_rotation = np.array(self._controller.goal_ori)
        # robosuite does not measure again once an initial state is set: the first action of an episode starts from
        # where its own reset had put the arm.
        self._measured = {name: getattr(self._controller, name) for name in _MEASURED}
        self._stale = True
        env.sim.forward, env.sim.step = self._forward, self._step
        self._arm = Arm(env, self._forward)
        self._hand = self.model.body(self._robot.robot_model.eef_name).id
        self._fingers = self._robot._ref_gripper_joint_pos_indexes  # noqa: SLF001
        self.interest = [self._find(name) for name in env.obj_of_interest[:OBJECTS]]

    def place(self) -> Place:
        """A new slot's own; `reset` comes first."""
        data = type(self._env.sim.data)(self._env.sim.model)
        return Place(data, self._start_rotation, np.zeros(2), False)

    def reset(self, place: Place, state: int, settle: int) -> None:
        """Put a slot at an initial state, and let `settle` control steps pass."""
        place.goal_rotation, place.gripper, place.started = self._start_rotation, np.zeros(2), False
        self.enter(place)
        sim = self._env.sim
        mujoco.mj_resetData(self.model, self.raw(place))
        sim.set_state_from_flattened(self.states[state])
        mujoco.mj_forward(self.model, self.raw(place))
        for _ in range(settle):
            self.step(place, SETTLE)

    def step(self, place: Place, action: NDArray[np.float64]) -> bool:
        """One control step of an action [7]; whether the goal holds after it."""
        env = self._env
        self.enter(place)
        for substep in range(self._substeps):
            env.sim.forward()
            self._arm.drive(action, substep == 0)
            env.sim.step()
        place.goal_rotation, place.gripper = self._controller.goal_ori, self._robot.gripper.current_action
        place.started = True
        env._post_process()  # noqa: SLF001
        return bool(env._check_success())  # noqa: SLF001

    def enter(self, place: Place) -> None:
        """Make a slot's data and its controllers' memory the environment's."""
        self._env.sim.data = place.data
        self._controller.goal_ori, self._robot.gripper.current_action = place.goal_rotation, place.gripper
        self._controller.new_update, self._stale = place.started, True
        if not place.started:
            vars(self._controller).update(self._measured)

    def show(self, place: Place) -> Any:
        """The MjData to draw a slot from, after what changes its look (a burner that is on) was brought up to date."""
        self.enter(place)
        self._env._post_process()  # noqa: SLF001
        return self.raw(place)

    def proprioception(self, place: Place) -> NDArray[np.float64]:
        """[8], as `conventions.PROPRIOCEPTION_DIM` says."""
        data = self.raw(place)
        rotation = rotation_vector(data.xquat[self._hand][[1, 2, 3, 0]])
        return np.concatenate([data.site_xpos[self._robot.eef_site_id], rotation, data.qpos[self._fingers]])

    def state(self, place: Place) -> NDArray[np.float64]:
        """[8 + 6 * OBJECTS] the same, and of each object of interest where it is, and where it is from the hand; zeros
        where there are fewer.
        """
        data, own = self.raw(place), self.proprioception(place)
        objects = np.zeros((OBJECTS, 6))
        for row, interest in zip(objects, self.interest, strict=False):
            where = data.xpos[interest.number] if interest.is_body else data.site_xpos[interest.number]
            row[:] = *where, *(where - own[:3])
        return np.concatenate([own, objects.ravel()])

    def hand(self, place: Place) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[3] the point between the fingertips, and [2] the unit vector along which they close."""
        data, site = self.raw(place), self._robot.eef_site_id
        across = data.xmat[self._hand].reshape(3, 3)[:2, 1]
        return np.array(data.site_xpos[site]), across / np.linalg.norm(across)

    def corners(self, place: Place, index: int) -> NDArray[np.float64]:
        """[N, 3] corners of boxes around the collision shapes of object of interest `index`."""
        (is_body, number, shapes), data = self.interest[index], self.raw(place)
        if is_body:
            rotations = data.geom_xmat[shapes].reshape(-1, 3, 3)
            return corners(data.geom_xpos[shapes], rotations, self.model.geom_aabb[shapes])
        box = np.r_[np.zeros(3), self.model.site_size[number]]
        return corners(data.site_xpos[[number]], data.site_xmat[[number]].reshape(1, 3, 3), box[None])

    @staticmethod
    def raw(place: Place) -> Any:
        """MuJoCo's own MjData."""
        return place.data._data  # noqa: SLF001

    def _find(self, name: str) -> "Interest":
        model, bodies = self.model, self._env.obj_body_id
        if name not in bodies:
            return Interest(False, model.site(name).id, np.zeros(0, np.intp))
        within = np.zeros(model.nbody, np.bool_)
        within[bodies[name]] = True
        for body in range(bodies[name] + 1, model.nbody):  # parents come before children
            within[body] = within[model.body_parentid[body]]
        # The microwave's shapes touch nothing of their own accord, but others touch them.
        solid = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
        return Interest(True, bodies[name], np.flatnonzero(within[model.geom_bodyid] & solid))

    def _forward(self) -> None:
        """In place of `sim.forward`, which robosuite calls twice before each physics step: what its controllers read is
        known after the first half of a step, and is computed once.
        """
        if self._stale:
            mujoco.mj_step1(self.model, self._env.sim.data._data)  # noqa: SLF001
            self._stale = False

    def _step(self) -> None:
        """In place of `sim.step`: the other half."""
        self._forward()
        mujoco.mj_step2(self.model, self._env.sim.data._data)  # noqa: SLF001
        self._stale = True


def _build(task: Task) -> Any:
    """The robosuite environment; its constructor draws places from numpy's global generator."""
    from libero.libero.envs.env_wrapper import ControlEnv

    if not task.description.is_file():
        raise SimulatorError(f"libero: task {task.name} of suite {task.suite} has no file {task.description}")
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    try:
        with redirect_stdout(StringIO()):
            env = ControlEnv(str(task.description), use_camera_obs=False, has_offscreen_renderer=False).env
    except (FileNotFoundError, KeyError) as error:
        raise SimulatorError(f"libero: task {task.name} of suite {task.suite} cannot be built: {error}") from error
    finally:
        np.random.set_state(before)  # noqa: NPY002
    env.visualize(dict.fromkeys(env._visualizations, False))  # noqa: SLF001 robosuite's own reset hides marks, too
    env._observables = {}  # noqa: SLF001 nothing here reads them, and robosuite updates all of them 25 times a step
    return env
