# ManiSkill is in an environment of its own.
# pyright: reportMissingImports=false

"""The scene in ManiSkill: a WidowX arm at a table, all objects and plates of the assets, two or three of them used.

Shapes: R rows (scenes), O objects, P plates.
"""

from typing import Any

import numpy as np
import sapien
import torch
from mani_skill import logger
from mani_skill.agents.registration import register_agent
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.envs.tasks.digital_twins.bridge_dataset_eval.base_env import WidowX250SBridgeDatasetFlatTable
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.geometry.rotation_conversions import quaternion_to_matrix
from mani_skill.utils.registration import register_env
from mani_skill.utils.sapien_utils import look_at, set_articulation_render_material
from mani_skill.utils.structs.actor import Actor
from mani_skill.utils.structs.pose import Pose
from mani_skill.utils.structs.types import SimConfig
from sapien.physx import PhysxMaterial

from treadle.simulators.maniskill.put_on_plate import rules
from treadle.simulators.maniskill.put_on_plate.assets import Assets, Thing
from treadle.simulators.maniskill.put_on_plate.placements import TABLE_TOP
from treadle.simulators.maniskill.put_on_plate.settings import Layout, first_layout

CONTROL = "arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos"
ENVIRONMENT = "TreadlePutOnPlate-v1"

_BASE = sapien.Pose([0.147, 0.028, TABLE_TOP], [0, 0, 0, 1])
_AWAY = sapien.Pose([0.147, 0.028, TABLE_TOP + 1], [0, 0, 0, 1])
"""Where the arm waits while things settle."""
_UNUSED = [0, 0, 0, 1]
"""Quaternion of things that are not used."""
_STILL = (1e-3, 1e-2)
"""Speeds, in m/s and rad/s, below which things have settled."""
_MOVE_AT = 5
"""Control steps after which the object is moved, where the setting says so."""
_FRICTION = 1.0
_SPECULAR, _ROUGHNESS = 0.9, 0.3
"""Of the arm's surface, where it is a mesh."""


@register_agent()
class WidowX(WidowX250SBridgeDatasetFlatTable):
    """The arm tuned to BridgeData, with its description where the assets have it."""

    uid = "treadle_widowx"

    def _after_init(self) -> None:
        self.tcp = self.robot.links_map["ee_gripper_link"]


@register_env(ENVIRONMENT)
class PutOnPlate(BaseEnv):
    """Starts from the `layout` in the options of `reset`; one row is reset at a time."""

    SUPPORTED_OBS_MODES = ("state_dict",)
    SUPPORTED_REWARD_MODES = ("none",)
    agent: WidowX

    def __init__(self, assets: Assets, num_envs: int = 1, **kwargs: Any) -> None:
        self._assets = assets
        # ManiSkill resets before any layout can be asked for.
        self.layouts: list[Layout] = [first_layout("none")] * num_envs
        """What each row plays."""
        arm = type("WidowX", (WidowX,), {"urdf_path": str(assets.arm)})
        super().__init__(num_envs=num_envs, robot_uids=arm, **kwargs)

    def reset(
        self, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """On the CPU the scene is built anew, and is where a published one is before its first episode. What touched
        what in a scene decides in which order PhysX lists the contacts of a thing of several pieces, and so how the
        thing comes to rest: an episode would depend on those before it.
        """
        options = options or {}
        if "layout" in options and not self.gpu_sim_enabled:
            self.layouts = [first_layout(options["layout"].effect)] * self.num_envs
            # What ManiSkill said of the arm when it was built first.
            silent, logger.disabled = logger.disabled, True
            try:
                super().reset(seed=seed, options={"reconfigure": True})
            finally:
                logger.disabled = silent
        return super().reset(seed=seed, options=options)

    @property
    def _default_sim_config(self) -> SimConfig:
        return SimConfig(sim_freq=500, control_freq=5, spacing=20)

    def _load_agent(self, options: dict[str, Any], *_: Any) -> None:  # type: ignore[override]
        super()._load_agent(options, _BASE)

    def _load_scene(self, options: dict[str, Any]) -> None:
        for arm in self.agent.robot._objs:  # noqa: SLF001
            set_articulation_render_material(arm, specular=_SPECULAR, roughness=_ROUGHNESS)
        builder = self.scene.create_actor_builder()
        if self._assets.stage:
            turned = sapien.Pose(q=[0.707, 0.707, 0, 0])
            builder.add_nonconvex_collision_from_file(str(self._assets.stage), pose=turned)
            builder.add_visual_from_file(str(self._assets.stage), pose=turned)
            builder.initial_pose = sapien.Pose([2.0634, 2.8313, 0])
        else:
            half = [0.45, 0.6, 0.02]
            builder.add_box_collision(half_size=half)
            builder.add_box_visual(
                half_size=half, material=sapien.render.RenderMaterial(base_color=[0.5, 0.45, 0.4, 1])
            )
            builder.initial_pose = sapien.Pose([-0.1, 0, TABLE_TOP - half[2]])
        builder.build_static(name="stage")
        self._parked: dict[Actor, list[float]] = {}
        """From where each object and plate falls, out of sight and without end, while it is not used, as published. A
        floor under them would change the last bits of how others come to rest.
        """
        self.objects = [self._build(f"object{i}", thing, i, 1.0) for i, thing in enumerate(self._assets.objects)]
        self.plates = [self._build(f"plate{i}", thing, i, 2.0) for i, thing in enumerate(self._assets.plates)]
        shape = (self.num_envs,)
        self._object_half = torch.zeros((*shape, 3), device=self.device)
        self._plate_half = torch.zeros((*shape, 3), device=self.device)
        self._held = torch.zeros(shape, device=self.device)
        self._grasped = torch.zeros(shape, device=self.device, dtype=torch.bool)
        self._held_long = torch.zeros(shape, device=self.device, dtype=torch.bool)

    def _build(self, name: str, thing: Thing, index: int, row: float) -> Actor:
        builder = self.scene.create_actor_builder()
        builder.add_multiple_convex_collisions_from_file(
            str(thing.collision),
            scale=[thing.scale] * 3,
            material=PhysxMaterial(static_friction=_FRICTION, dynamic_friction=_FRICTION, restitution=0.0),
            density=thing.density,
        )
        builder.add_visual_from_file(str(thing.visual), scale=[thing.scale] * 3)
        parked = [row, 0.3 * index, 1.0]
        builder.initial_pose = sapien.Pose(parked)
        actor = builder.build(name=name)
        self._parked[actor] = parked
        return actor

    def _load_lighting(self, options: dict[str, Any]) -> None:
        self.scene.set_ambient_light([0.3, 0.3, 0.3])
        self.scene.add_directional_light([0, 0, -1], [2.2, 2.2, 2.2])
        self.scene.add_directional_light([-1, -0.5, -1], [0.7, 0.7, 0.7])
        self.scene.add_directional_light([1, 1, -1], [0.7, 0.7, 0.7])

    def _after_reconfigure(self, options: dict[str, Any]) -> None:
        shown = [actor._objs[0].per_scene_id for actor in (*self.objects, *self.plates)]  # noqa: SLF001
        shown += [link._objs[0].entity.per_scene_id for link in self.agent.robot.get_links()]  # noqa: SLF001
        self.foreground = torch.tensor(shown, dtype=torch.int32, device=self.device)
        """Segmentation ids of arm, objects and plates."""

    def _initialize_episode(self, env_idx: torch.Tensor, options: dict[str, Any]) -> None:
        for row in env_idx.tolist():
            self.layouts[row] = options.get("layout", self.layouts[row])
        layout = self.layouts[int(env_idx[0])]
        turn = [np.cos(layout.yaw / 2), 0, 0, np.sin(layout.yaw / 2)]
        self.agent.robot.set_pose(_AWAY)
        at = np.column_stack([layout.places, layout.drops[: len(layout.places)]])
        used: dict[Actor, tuple[Any, Any]] = {
            self.objects[layout.object]: (at[0], turn),
            self.plates[layout.plate]: (at[1], [1, 0, 0, 0]),
        }
        if layout.effect == "object":
            used[self.objects[layout.other]] = (at[2], turn)
        elif layout.effect == "plate":
            used[self.plates[layout.other]] = (at[2], [1, 0, 0, 0])
        for actor, parked in self._parked.items():
            self._put(actor, *used.get(actor, (parked, _UNUSED)))
            actor.set_linear_velocity(torch.zeros(3))
            actor.set_angular_velocity(torch.zeros(3))
        self._settle(0.5)
        rows = env_idx.to(self.device)
        speed = sum(torch.linalg.norm(actor.linear_velocity[rows]) for actor in used)
        spin = sum(torch.linalg.norm(actor.angular_velocity[rows]) for actor in used)
        if speed > _STILL[0] or spin > _STILL[1]:
            self._settle(6)
        self.agent.robot.set_pose(_BASE)
        self.agent.reset(init_qpos=torch.as_tensor(layout.arm, dtype=torch.float32, device=self.device))
        self._object_half[rows] = _half(self._assets.objects[layout.object], self.objects[layout.object], rows)
        self._plate_half[rows] = _half(self._assets.plates[layout.plate], self.plates[layout.plate], rows)
        self._held[rows] = 0
        self._grasped[rows] = self._held_long[rows] = False

    def _put(self, actor: Actor, position: Any, quaternion: Any) -> None:
        actor.set_pose(Pose.create_from_pq(torch.tensor(np.array(position, np.float32)), quaternion))

    def _settle(self, control_steps: float) -> None:
        if self.gpu_sim_enabled:
            self.scene._gpu_apply_all()  # noqa: SLF001
        for _ in range(int(control_steps * self.sim_freq / self.control_freq)):
            self.scene.step()
        if self.gpu_sim_enabled:
            self.scene._gpu_fetch_all()  # noqa: SLF001

    def _after_control_step(self) -> None:
        moving = [
            row
            for row, layout in enumerate(self.layouts)
            if layout.effect == "move" and int(self.elapsed_steps[row]) == _MOVE_AT - 1
        ]
        if not moving:
            return
        if self.gpu_sim_enabled:
            self.scene._gpu_fetch_all()  # noqa: SLF001
        kept = self.scene._reset_mask  # noqa: SLF001
        for row in moving:
            layout = self.layouts[row]
            self.scene._reset_mask = torch.arange(self.num_envs, device=self.device) == row  # noqa: SLF001
            moved = self.objects[layout.object]
            there = [*layout.places[2], layout.drops[2]], [np.cos(layout.yaw / 2), 0, 0, np.sin(layout.yaw / 2)]
            for actor in self.objects:
                # Unused ones fall once more from where they began, as published.
                self._put(actor, *(there if actor is moved else (self._parked[actor], _UNUSED)))
        self.scene._reset_mask = kept  # noqa: SLF001
        self._settle(0.5)

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Success and what the score is made of, of every row; counts how long the object has been held."""
        things, plates = self.positions()
        pressed = torch.zeros(self.num_envs, device=self.device)
        grasping = torch.zeros(self.num_envs, device=self.device, dtype=torch.bool)
        for pair in {(layout.object, layout.plate) for layout in self.layouts}:
            rows = [row for row, layout in enumerate(self.layouts) if (layout.object, layout.plate) == pair]
            thing, plate = self.objects[pair[0]], self.plates[pair[1]]
            force = torch.linalg.norm(self.scene.get_pairwise_contact_forces(thing, plate), dim=1)
            pressed[rows] = force[rows]
            grasping[rows] = self.agent.is_grasping(thing)[rows]
        self._held = torch.where(grasping, self._held + 1, 0)
        self._grasped |= grasping
        self._held_long |= self._held >= rules.HELD_STEPS
        success = rules.on_plate(things, plates, self._object_half, self._plate_half, pressed)
        return {
            "success": success,
            "score": rules.score(self._grasped, self._held_long, success),
            "grasping": grasping,
        }

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[R, 3] of each row's object and of its plate, metres."""
        rows = range(self.num_envs)
        things = torch.stack([self.objects[self.layouts[row].object].pose.p[row] for row in rows])
        plates = torch.stack([self.plates[self.layouts[row].plate].pose.p[row] for row in rows])
        return things, plates

    def _get_obs_extra(self, info: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        things, plates = self.positions()
        tool = self.agent.tcp.pose
        quaternion = torch.stack([self.objects[layout.object].pose.q[row] for row, layout in enumerate(self.layouts)])
        return {
            "tool": tool.raw_pose,
            "thing": torch.cat([things, quaternion], 1),
            "tool_to_thing": things - tool.p,
            "thing_to_plate": plates - things,
            "object_half": self._object_half,
            "plate_half": self._plate_half,
            "progress": torch.stack(
                [info["grasping"].float(), self._grasped.float(), self._held / 5, self._held_long.float()], 1
            ),
        }

    def get_state_dict(self) -> dict[str, Any]:
        """With what this task counts."""
        counts = torch.stack([self._held, self._grasped.float(), self._held_long.float()], 1)
        return {**super().get_state_dict(), "counts": counts}

    def set_state_dict(self, state: dict[str, Any], env_idx: torch.Tensor | None = None) -> None:  # type: ignore[override]
        """As `get_state_dict` gave it."""
        super().set_state_dict({key: value for key, value in state.items() if key != "counts"}, env_idx)
        counts = state["counts"]
        self._held, self._grasped, self._held_long = counts[:, 0].clone(), counts[:, 1] > 0, counts[:, 2] > 0

    @property
    def _default_human_render_camera_configs(self) -> Any:
        view = look_at([-0.62, 0.38, 1.3], [-0.1, 0.0, 0.95])
        return CameraConfig("render_camera", view, 512, 512, 0.9, 0.01, 100)


def _half(thing: Thing, actor: Actor, rows: torch.Tensor) -> torch.Tensor:
    """[n, 3] half extents along the world's axes of a thing's box as it lies."""
    turned = quaternion_to_matrix(actor.pose.q[rows]).abs()
    return turned @ torch.tensor(thing.size, dtype=torch.float32, device=turned.device) / 2
