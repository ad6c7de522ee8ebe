# mujoco and robosuite ship no types, and are in the simulator's own environment alone.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

"""One task, built once, for as many slots as play it.

robosuite builds a scene in seconds and holds a gigabyte for it, so slots share the scene of their task: each has MuJoCo
data of its own, and what its controllers remember, and where its furniture stands, is put in place before it is stepped
or drawn.
"""

from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numpy.typing import NDArray

from treadle.errors import SimulatorError
from treadle.simulators.libero import furniture
from treadle.simulators.libero.arm import Arm
from treadle.simulators.libero.conventions import OBJECTS, SENSED, rotation_vector
from treadle.simulators.libero.shapes import corners
from treadle.simulators.libero.suites import Task, read_states

_MEASURED = (
    *("ee_pos", "ee_ori_mat", "ee_pos_vel", "ee_ori_vel", "joint_pos", "joint_vel"),
    *("J_pos", "J_ori", "J_full", "mass_matrix"),
)
"""What robosuite's controller measures before each physics step and keeps."""


class Sensed(NamedTuple):
    """What robosuite's sensors saw last; they see bodies where they were before the physics step, and joints after."""

    positions: NDArray[np.float64]
    """Of all joints, before the physics step."""
    fingers: NDArray[np.float64]
    """[2] after it."""
    lit: NDArray[np.float32]
    """Opacity of every site: a burner that is on is seen."""


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
    furniture: NDArray[np.float64]
    """[F, 7] where it stands."""
    lit: NDArray[np.float32]
    """Opacity of every site after its last control step."""
    sensed: Sensed


class Interest(NamedTuple):
    """An object that a task is about: a body, or a region, which is a site."""

    is_body: bool
    number: int
    """Of the body or the site."""
    shapes: NDArray[np.intp]
    """What of it others can collide with; a region has none."""


class TaskScene:
    """A task's robosuite environment, without its observations and its renderer."""

    def __init__(self, task: Task, seeds: list[tuple[int, int]]) -> None:
        """Takes seconds. `seeds`: those of its furniture, as `furniture.draw` takes them.

        Raises SimulatorError where its files are incomplete.
        """
        self.task = task
        self.states = read_states(task)
        self._env = env = _build(task)
        self._furniture = furniture.draw(env, seeds)
        self._furniture_bodies = furniture.bodies_of(env)
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
        self._shown = mujoco.MjData(self.model)
        free = np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        bodies = [self.model.body(self.model.jnt_bodyid[joint]).name for joint in free]
        self.objects = {
            name.removesuffix("_main"): int(self.model.jnt_qposadr[joint])
            for name, joint in zip(bodies, free, strict=True)
        }
        """What can be moved: where each object's position [3] begins among the joints' positions."""
        self.interest = [self._find(name) for name in env.obj_of_interest[:OBJECTS]]

    def place(self) -> Place:
        """A new slot's own; `reset` comes first."""
        data, lit = type(self._env.sim.data)(self._env.sim.model), self._lit()
        sensed = Sensed(np.zeros(self.model.nq), np.zeros(2), lit)
        return Place(data, self._start_rotation, np.zeros(2), False, self._furniture[0], lit, sensed)

    def reset(self, place: Place, state: int) -> None:
        """Put a slot at an initial state. It has not settled."""
        place.goal_rotation, place.gripper, place.started = self._start_rotation, np.zeros(2), False
        place.furniture = self._furniture[state % len(self._furniture)]
        self.enter(place)
        data = self.raw(place)
        mujoco.mj_resetData(self.model, data)
        self._env.sim.set_state_from_flattened(self.states[state])
        mujoco.mj_forward(self.model, data)
        self._env._post_process()  # noqa: SLF001
        place.lit = self._lit()
        place.sensed = Sensed(data.qpos.copy(), data.qpos[self._fingers], place.lit)

    def step(self, place: Place, action: NDArray[np.float64]) -> bool:
        """One control step of an action [7]; whether the goal holds after it."""
        env, data = self._env, self.raw(place)
        self.enter(place)
        for substep in range(1, self._substeps + 1):
            env.sim.forward()
            self._arm.drive(action, substep == 1)
            if substep == SENSED:
                before = data.qpos.copy()
                env.sim.step()
                place.sensed = Sensed(before, data.qpos[self._fingers], place.lit)
            else:
                env.sim.step()
        place.goal_rotation, place.gripper = self._controller.goal_ori, self._robot.gripper.current_action
        place.started = True
        env._post_process()  # noqa: SLF001
        place.lit = self._lit()
        return bool(env._check_success())  # noqa: SLF001

    def enter(self, place: Place) -> None:
        """Make a slot's data and its controllers' memory the environment's."""
        self._env.sim.data = place.data
        self._controller.goal_ori, self._robot.gripper.current_action = place.goal_rotation, place.gripper
        self._controller.new_update, self._stale = place.started, True
        if not place.started:
            vars(self._controller).update(self._measured)
        self._stand(place)

    def sense(self, place: Place) -> tuple[Any, NDArray[np.float64]]:
        """What robosuite's sensors saw last of a slot: the MjData to draw, valid until the next call, and
        proprioception [8], as `conventions.PROPRIOCEPTION_DIM` says.
        """
        self._stand(place)
        self._shown.qpos[:], self.model.site_rgba[:, 3] = place.sensed.positions, place.sensed.lit
        mujoco.mj_kinematics(self.model, self._shown)
        mujoco.mj_camlight(self.model, self._shown)
        return self._shown, self._proprioception(self._shown, place.sensed.fingers)

    def state(self, place: Place) -> NDArray[np.float64]:
        """[8 + 6 * OBJECTS] proprioception now, and of each object of interest where it is, and where it is from the
        hand; zeros where there are fewer.
        """
        data = self.raw(place)
        own = self._proprioception(data, data.qpos[self._fingers])
        objects = np.zeros((OBJECTS, 6))
        for row, interest in zip(objects, self.interest, strict=False):
            where = data.xpos[interest.number] if interest.is_body else data.site_xpos[interest.number]
            row[:] = *where, *(where - own[:3])
        return np.concatenate([own, objects.ravel()])

    def positions(self, place: Place) -> dict[str, NDArray[np.float64]]:
        """[3] where each object is that can be moved."""
        joints = self.raw(place).qpos
        return {name: joints[begin : begin + 3].copy() for name, begin in self.objects.items()}

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

    def _proprioception(self, data: Any, fingers: NDArray[np.float64]) -> NDArray[np.float64]:
        rotation = rotation_vector(data.xquat[self._hand][[1, 2, 3, 0]])
        return np.concatenate([data.site_xpos[self._robot.eef_site_id], rotation, fingers])

    def _stand(self, place: Place) -> None:
        bodies, poses = self._furniture_bodies, place.furniture
        self.model.body_pos[bodies], self.model.body_quat[bodies] = poses[:, :3], poses[:, 3:]

    def _lit(self) -> NDArray[np.float32]:
        return self.model.site_rgba[:, 3].copy()

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
    """The robosuite environment. Its constructor draws from numpy's global generator, and fails where things find no
    room; so it is given a seed, and the generator is left as it was.
    """
    from libero.libero.envs.env_wrapper import ControlEnv

    if not task.description.is_file():
        raise SimulatorError(f"libero: task {task.name} of suite {task.suite} has no file {task.description}")
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
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
