# ManiSkill is in an environment of its own.
# pyright: reportMissingImports=false

"""ManiSkill's put on plate beside the environment classes of RL4VLA, whose task it is, in closed loop with a policy of
random weights; in the simulator's own environment:

    ENVIRONMENT/bin/python -m benchmarks.check_put_on_plate --published RL4VLA --assets FOLDER [--settings S ...]

with PYTHONPATH=src and the variables in the environment's treadle.json. `RL4VLA` is a clone of the public repository,
`FOLDER` the published assets or what stands in for them, in the layout of docs/maniskill.md, with a stage and an arm.
With `--fork` its own ManiSkill is loaded too, in place of the installed one.

After the chunks of the policy the object is put above the plate and falls, in both, so that success is seen. Each
episode is the first of a new environment of RL4VLA's: how some things come to rest depends on what it played before.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.output import write_record

IDS = {
    "train": ("Main-v3", "train"),
    "vision/table": ("VisionImage-v1", "test"),
    "vision/texture-0.3": ("VisionTexture03-v1", "test"),
    "vision/texture-0.5": ("VisionTexture05-v1", "test"),
    "vision/whole-0.3": ("VisionWhole03-v1", "test"),
    "vision/whole-0.5": ("VisionWhole05-v1", "test"),
    "semantic/object": ("Carrot-v1", "test"),
    "semantic/object-seen": ("Carrot-v1", "train"),
    "semantic/plate": ("Plate-v1", "test"),
    "semantic/wording": ("Instruct-v1", "test"),
    "semantic/two-objects": ("MultiCarrot-v1", "test"),
    "semantic/two-objects-seen": ("MultiCarrot-v1", "train"),
    "semantic/two-plates": ("MultiPlate-v1", "test"),
    "semantic/two-plates-seen": ("MultiPlate-v1", "train"),
    "execution/place": ("Position-v1", "test"),
    "execution/arm": ("EEPose-v1", "test"),
    "execution/moved": ("PositionChangeTo-v1", "test"),
}
"""The published environment of each setting, and its set of objects."""
FILE = Path("ManiSkill/mani_skill/envs/tasks/digital_twins/bridge_dataset_eval/put_on_in_scene_multi.py")
CAMERA = "3rd_view_camera"
FALLS = 6
"""Control steps in which the object falls onto the plate."""
STILL = np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32)
PARTS = ("frames", "arm", "object", "plate", "success", "reward")
"""Frames [480, 640, 3]; joints [8]; poses [7] of the object and the plate; success; the score so far."""

Track = dict[str, list[np.ndarray]]


class Side(Protocol):
    """One of the two."""

    def reset(self, setting: str, number: int) -> str:
        """Start an episode by its number in the published order; returns the instruction."""
        ...

    def look(self) -> dict[str, np.ndarray]:
        """The moment, by `PARTS`."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Play an action [1, 7] in metres, radians and gripper opening."""
        ...

    def place(self) -> None:
        """Put the object 8 cm above the plate."""
        ...


class Published:
    """RL4VLA's classes on one scene of a CPU."""

    def __init__(self, checkout: Path, assets: Path) -> None:
        found = importlib.util.spec_from_file_location("published_put_on_plate", checkout / FILE)
        assert found is not None
        assert found.loader is not None
        module: Any = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        found.loader.exec_module(module)
        module.CARROT_DATASET_DIR = assets
        module.BRIDGE_DATASET_ASSET_PATH = assets / "tasks/bridge_v2_real2sim_dataset"
        module.WidowX250SBridgeDatasetFlatTable.urdf_path = str(assets / "robots/widowx/wx250s.urdf")
        observed = module.PutOnPlateInScene25.get_obs
        # Newer releases of ManiSkill ask with one more word.
        module.PutOnPlateInScene25.get_obs = lambda it, info=None, **_: observed(it, info)
        self.environment: Any = None

    def reset(self, setting: str, number: int) -> str:
        from mani_skill.utils.registration import REGISTERED_ENVS

        name, things = IDS[setting]
        if self.environment is not None:
            self.environment.close()
        self.environment = REGISTERED_ENVS[f"PutOnPlateInScene25{name}"].cls(
            num_envs=1,
            obs_mode="rgb+segmentation",
            control_mode="arm_pd_ee_target_delta_pose_align2_gripper_pd_joint_pos",
            sim_backend="cpu",
            render_backend="cpu",
            sim_config={"sim_freq": 500, "control_freq": 5},
            sensor_configs={"shader_pack": "default"},
        )
        options = {"obj_set": things, "episode_id": torch.tensor([number])}
        self._seen, self._info = self.environment.reset(seed=[0], options=options)
        return self.environment.get_language_instruction()[0]

    def look(self) -> dict[str, np.ndarray]:
        environment = self.environment
        thing, plate = self._things()
        # As RL4VLA's wrapper adds them up.
        grasped, held = self._info["is_src_obj_grasped"], self._info["consecutive_grasp"]
        success = self._info["success"]
        score = 0.1 * grasped + 0.1 * held + 1.0 * (success & grasped)
        return {
            "frames": self._seen["sensor_data"][CAMERA]["rgb"][0].numpy().astype(np.uint8),
            "arm": environment.agent.robot.get_qpos()[0].numpy(),
            "object": thing.pose.raw_pose[0].numpy(),
            "plate": plate.pose.raw_pose[0].numpy(),
            "success": success[0].numpy(),
            "reward": score[0].numpy().astype(np.float32),
        }

    def step(self, action: np.ndarray) -> None:
        command = np.r_[action[0, :6], 2.0 * (action[0, 6] > 0.5) - 1.0].astype(np.float32)
        self._seen, _, _, _, self._info = self.environment.step(torch.from_numpy(command)[None])

    def place(self) -> None:
        lift(*self._things())

    def _things(self) -> tuple[Any, Any]:
        environment = self.environment
        thing = environment.carrot_names[int(environment.select_carrot_ids[0])]
        plate = environment.plate_names[int(environment.select_plate_ids[0])]
        return environment.objs_carrot[thing], environment.objs_plate[plate]


class Here:
    """Treadle's task."""

    def __init__(self, assets: Path) -> None:
        from treadle.simulators.maniskill.engine import backend
        from treadle.simulators.maniskill.put_on_plate.task import PutOnPlateTask

        self._task = PutOnPlateTask(assets)
        self._environment = self._task.make(1, 480, backend("cpu"))

    def reset(self, setting: str, number: int) -> str:
        from treadle.simulators.maniskill.put_on_plate.settings import SETTINGS

        layout = SETTINGS[setting].published_layout(number, "rl4vla")
        _, self._info = self._environment.reset(seed=0, options={"layout": layout})
        return self._task._instruction(layout)  # noqa: SLF001

    def look(self) -> dict[str, np.ndarray]:
        environment = self._environment
        environment.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        sensor = environment.scene.sensors[CAMERA]
        sensor.capture()
        textures = sensor.get_obs(rgb=True, depth=False, position=False, segmentation=True)
        thing, plate = self._things()
        return {
            "frames": self._task.picture(environment, textures, None)[0].numpy(),
            "arm": environment.agent.robot.get_qpos()[0].numpy(),
            "object": thing.pose.raw_pose[0].numpy(),
            "plate": plate.pose.raw_pose[0].numpy(),
            "success": self._info["success"][0].numpy(),
            "reward": self._info["score"][0].numpy().astype(np.float32),
        }

    def step(self, action: np.ndarray) -> None:
        from treadle.simulators.maniskill.task import to_controller

        command = to_controller(action, self._task.scale)
        _, _, _, _, self._info = self._environment.step(torch.from_numpy(command))

    def place(self) -> None:
        lift(*self._things())

    def _things(self) -> tuple[Any, Any]:
        layout = self._environment.layouts[0]
        return self._environment.objects[layout.object], self._environment.plates[layout.plate]


def lift(thing: Any, plate: Any) -> None:
    pose = plate.pose.raw_pose.clone()
    pose[:, 2] += 0.08
    pose[:, 3:] = torch.tensor([1.0, 0, 0, 0])
    thing.set_pose(type(plate.pose).create(pose))
    thing.set_linear_velocity(torch.zeros(1, 3))
    thing.set_angular_velocity(torch.zeros(1, 3))


def make_policy(seed: int = 0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A perceptron with random weights, from a frame and joints to an action: frames that differ a little give other
    actions.
    """
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(16 * 16 * 3 + 8, 64)), rng.normal(size=(64, 7)) / 8
    # Centimetres, and tenths of radians.
    scale = np.array([0.04, 0.04, 0.04, 0.1, 0.1, 0.1, 1])

    def act(frame: np.ndarray, joints: np.ndarray) -> np.ndarray:
        pooled = frame.reshape(16, 30, 16, 40, 3).mean(axis=(1, 3)) / 255
        hidden = np.tanh(np.r_[pooled.ravel(), joints] @ first)
        return (np.tanh(hidden @ second) * scale).astype(np.float32)[None]

    return act


def play(side: Side, setting: str, number: int, steps: int) -> tuple[str, Track]:
    """An episode: the instruction, and what was seen before the first action and after each."""
    policy, track = make_policy(), {name: [] for name in (*PARTS, "actions")}
    instruction = side.reset(setting, number)
    for step in range(steps + FALLS):
        now = side.look()
        action = policy(now["frames"], now["arm"]) if step < steps else STILL
        for name, value in {**now, "actions": action}.items():
            track[name].append(value.copy())
        if step == steps:
            side.place()
        side.step(action)
    for name, value in {**side.look(), "actions": STILL}.items():
        track[name].append(value.copy())
    return instruction, track


def episodes(settings: Sequence[str], count: int) -> list[tuple[str, int]]:
    """Settings with numbers of episodes that differ in everything."""
    from treadle.simulators.maniskill.put_on_plate.settings import SETTINGS

    return [
        (setting, (SETTINGS[setting].length * (2 * index + 1)) // (2 * count) + 12345 * index)
        for setting in settings
        for index in range(count)
    ]


def compare(setting: str, number: int, here: tuple[str, Track], there: tuple[str, Track]) -> dict[str, Any]:
    """How far apart the two are in one episode."""
    (instruction, ours), (published, theirs) = here, there
    row: dict[str, Any] = {"setting": setting, "number": number, "instruction": instruction}
    row |= {"same_instruction": instruction == published, "looks": len(ours["frames"])}
    for name in ("frames", "arm", "object", "plate", "actions", "reward"):
        pairs = zip(ours[name], theirs[name], strict=True)
        apart = [np.abs(a.astype(float) - b.astype(float)) for a, b in pairs]
        row[f"{name}_difference"] = float(max(part.max() for part in apart))
        row[f"{name}_difference_at_start"] = float(apart[0].max())
    pictures = zip(ours["frames"], theirs["frames"], strict=True)
    row["frames_mean_difference"] = float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in pictures]))
    row["success"], row["success_published"] = (
        [step for step, value in enumerate(track["success"]) if value] for track in (ours, theirs)
    )
    return row


def elsewhere(chosen: argparse.Namespace, path: Path) -> None:
    """Play the published side in a process of its own."""
    before = os.environ.get("PYTHONPATH", "")
    fork = f"{chosen.published.resolve() / 'ManiSkill'}:" if chosen.fork else ""
    command = [sys.executable, "-m", "benchmarks.check_put_on_plate", *sys.argv[1:], "--side", str(path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": fork + before})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument(
        "--settings", nargs="+", choices=IDS, default=["train", "vision/texture-0.5", "execution/moved"]
    )
    parser.add_argument("--count", type=int, default=2, help="episodes of each")
    parser.add_argument(
        "--steps", type=int, default=24, help="control steps of an episode, before the object is placed"
    )
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    assets = chosen.assets.resolve()
    chosen_episodes = episodes(chosen.settings, chosen.count)
    if chosen.side is not None:
        side = Published(chosen.published, assets)
        played = [play(side, setting, number, chosen.steps) for setting, number in chosen_episodes]
        torch.save(played, chosen.side)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "published.pt"
        elsewhere(chosen, file)
        published = torch.load(file, weights_only=False)
    side, rows = Here(assets), []
    for (setting, number), there in zip(chosen_episodes, published, strict=True):
        rows.append(compare(setting, number, play(side, setting, number, chosen.steps), there))
        print(rows[-1], flush=True)
    figures = {"fork": chosen.fork, "steps": chosen.steps, "rows": rows}
    record = write_record(chosen.json, "put on plate parity", figures, ("mani_skill", "sapien", "torch"))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
