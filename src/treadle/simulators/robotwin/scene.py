"""One scene of RoboTwin: set up from a seed, stepped and looked at.

Everything that touches RoboTwin's and SAPIEN's packages is here; they are imported when the first scene is set up.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario
from treadle.errors import SimulatorError
from treadle.simulators.robotwin.instructions import Wording, word

CAMERAS = ("head_camera", "left_camera", "right_camera")
"""The one above the table, and those at the wrists."""
FRAME_HEIGHT, FRAME_WIDTH = 240, 320
"""Of the camera type D435."""
Shader = Literal["auto", "rt", "default"]

_RAY_TRACING = ("samples_per_pixel", "path_depth", "denoiser")
_UNLIMITED = 10**9
_SEEDS_TRIED = 20
"""Of seeds that are counted up, some give a scene in which things do not come to rest; the next one is taken then."""
_CLEAR_EVERY = 8
"""Scenes between which the renderer's memory is cleared, as in the published runs."""


class Scene:
    """A task that stands."""

    def __init__(self, scenario: Scenario, seed: int, task: Any, instruction: str, *, clear: bool) -> None:
        self.scenario = scenario
        self.instruction = instruction
        self._seed = seed
        self._task = task
        self._clear = clear
        self._played = 0

    def play(self, actions: NDArray[np.float64]) -> bool:
        """Play actions [n, 14] as one motion through all of them; whether the task is solved on the way."""
        self._fix_chance()
        self._played += len(actions)
        return bool(self._task.gen_sparse_reward_data(actions)[3]["success"])

    def joints(self) -> NDArray[np.float64]:
        """[14] joint targets and grippers, as actions have them."""
        robot = self._task.robot
        return np.array([*robot.get_left_arm_jointState(), *robot.get_right_arm_jointState()], np.float64)

    def frames(self, cameras: Sequence[str]) -> list[NDArray[np.uint8]]:
        """[H, W, 3] of each of the cameras, and of no other, for drawing takes most of the time."""
        self._fix_chance()
        task = self._task
        task._update_render()  # noqa: SLF001 - the only way to place the cameras at the wrists
        rig = task.cameras
        by_name = dict(zip(rig.static_camera_name, rig.static_camera_list, strict=True))
        taken: list[NDArray[np.uint8]] = []
        for name in cameras:
            camera = by_name[name] if name in by_name else getattr(rig, name)
            camera.take_picture()
            taken.append((camera.get_picture("Color")[..., :3] * 255).clip(0, 255).astype(np.uint8))
        return taken

    def close(self) -> None:
        """Take the scene down."""
        self._task.close_env(clear_cache=self._clear)

    def _fix_chance(self) -> None:
        """What is drawn in a step or a picture follows from scenario and step alone, whatever other scenes draw."""
        np.random.seed((self._seed * 1_000_003 + self._played) % 2**32)  # noqa: NPY002 - RoboTwin draws from it


class Workshop:
    """Sets up scenes with the assets below `root`."""

    def __init__(self, root: Path, embodiment: Sequence[Any], shader: Shader, *, wrists: bool) -> None:
        self._root = root
        self._embodiment = list(embodiment)
        self._shader: Shader = shader
        self._wrists = wrists
        self._built = 0
        self._arguments: dict[str, Any] | None = None

    def build(self, scenario: Scenario, seed: int, wording: Wording, *, randomized: bool) -> Scene:
        """The scene of a scenario, with its instruction. Raises SimulatorError where RoboTwin cannot set it up."""
        # Its helpers find assets by this alone.
        os.environ["ASSETS_PATH"] = str(self._root)
        self._built += 1
        with _quiet(), _renderer(self._shader):
            module = import_module(f"robotwin.envs.{scenario.task}")
            unstable: type[Exception] = import_module("robotwin.envs.utils.create_actor").UnStableError
            make: Callable[[], Any] = getattr(module, scenario.task)
            for shift in range(_SEEDS_TRIED):
                task = make()
                random.seed(seed + shift)
                try:
                    task.setup_demo(
                        now_ep_num=seed,
                        seed=seed + shift,
                        task_name=scenario.task,
                        **self._configured(randomized=randomized),
                    )
                except unstable:
                    task.close_env(clear_cache=True)
                except Exception as error:
                    task.close_env(clear_cache=True)
                    raise SimulatorError(
                        f"{scenario.id}, seed {seed}: RoboTwin cannot set up its scene: {type(error).__name__}: "
                        f"{error}; assets below {self._root}"
                    ) from error
                else:
                    task.step_lim = _UNLIMITED
                    instruction = word(scenario.task, wording, task.get_info(), seed)
                    return Scene(scenario, seed, task, instruction, clear=self._built % _CLEAR_EVERY == 0)
        raise SimulatorError(
            f"{scenario.id}: things come to rest with none of the seeds {seed} to {seed + _SEEDS_TRIED - 1}; set "
            f"simulator.options.{scenario.split}_seeds to a file of seeds that are known to do"
        )

    def _configured(self, *, randomized: bool) -> dict[str, Any]:
        """Keyword arguments of a task's `setup_demo`; new ones each time, for RoboTwin changes them."""
        import yaml

        load: Callable[[str], dict[str, Any]] = import_module("robotwin.config").load_task_config
        if self._arguments is None:
            known = load("_embodiment_config")
            names = [name for name in self._embodiment if isinstance(name, str)]
            folders = [os.path.normpath(self._root / known[name]["file_path"]) for name in names]
            configs = [yaml.safe_load((Path(folder) / "config.yml").read_text(encoding="utf-8")) for folder in folders]
            apart = {"embodiment_dis": float(self._embodiment[2])} if len(names) == 2 else {}
            self._arguments = {
                "left_robot_file": folders[0],
                "right_robot_file": folders[-1],
                "left_embodiment_config": configs[0],
                "right_embodiment_config": configs[-1],
                "embodiment_name": "_".join(names),
                "dual_arm_embodied": len(names) == 1,
                "planner_backend": "mplib",
                "eval_mode": True,
                "eval_video_log": False,
                "render_freq": 0,
                **apart,
            }
        arguments = load("demo_randomized" if randomized else "demo_clean") | deepcopy(self._arguments)
        arguments["camera"]["collect_wrist_camera"] = self._wrists
        return arguments


@contextmanager
def _quiet() -> Iterator[None]:
    """RoboTwin says what it lacks on the way, such as a planner that is not used; its errors are raised."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


@contextmanager
def _renderer(shader: Shader) -> Iterator[None]:
    """RoboTwin asks for ray tracing, which only graphics cards offer; while it sets up a scene, ask for `shader`."""
    render = import_module("sapien.render")
    if shader == "rt" or (shader == "auto" and _has_graphics_card()):
        yield
        return
    own = {
        name: getattr(render, name)
        for name in ("set_camera_shader_dir", *(f"set_ray_tracing_{what}" for what in _RAY_TRACING))
    }
    for name in own:
        setattr(render, name, lambda _: None)
    own["set_camera_shader_dir"]("default")
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(render, name, function)


def _has_graphics_card() -> bool:
    try:
        return bool(import_module("sapien").Device("cuda").can_render())
    except RuntimeError:
        return False
