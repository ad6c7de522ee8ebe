"""RoboTwin 2.0 as a batch of slots: each holds one of its scenes. Imports RoboTwin's packages when a scene is set up.

Shapes: n slots addressed, C actions of a chunk, 14 action dimensions.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.checks import check_option, check_suite, entry_of
from treadle.simulators.enumeration import Enumeration, fit_square
from treadle.simulators.protocol import ActionDimension, SimulatorSpec, Slots
from treadle.simulators.robotwin.assets import check_assets
from treadle.simulators.robotwin.instructions import Wording, describe
from treadle.simulators.robotwin.scene import CAMERAS, FRAME_HEIGHT, FRAME_WIDTH, Scene, Shader, Workshop
from treadle.simulators.robotwin.seeds import read_seeds
from treadle.simulators.robotwin.tasks import HORIZONS, TASKS, task_source
from treadle.simulators.robotwin.things import write_things
from treadle.simulators.vulkan import describe_vulkan

NAME = "robotwin"
MINIATURE = "miniature"
"""The assets that lie beside this file, two arms of boxes and a hammer of two, and those of `things`; blocks need
none."""
MINIATURE_TASKS = (*HORIZONS["rlinf"], "stack_blocks_two")
ACTIONS = tuple(
    ActionDimension(f"{arm}_{name}", "gripper" if name == "gripper" else "absolute")
    for arm in ("left", "right")
    for name in (*(f"joint_{i}" for i in range(1, 7)), "gripper")
)
"""Of each arm six joint targets in radians, and its gripper."""
Variation = Literal["clean", "randomized"]
_SETTINGS: dict[str, tuple[Variation | None, Wording]] = {
    "train": (None, "seen"),
    "semantic/instruction": (None, "unseen"),
    "vision/randomized": ("randomized", "seen"),
}
"""Each suite's variation, None for that of training, and wording."""


class RoboTwin:
    """Two arms at a table.

    Actions [14]: six joint targets in radians and the gripper, 0 closed and 1 open, of the left arm, then of the right.
    They are played one after another, each a motion of its own as fast as the joints allow, or several as one motion,
    as in published runs. The task is solved, and the episode ends, with the last action of the motion in which
    RoboTwin's own test holds.
    """

    def __init__(
        self,
        slots: int,
        *,
        horizon: int = 200,
        threads: int = 1,
        tasks: str | Sequence[str] = "beat_block_hammer",
        assets: str = MINIATURE,
        variation: Variation = "clean",
        train_seeds: str | None = None,
        evaluation_seeds: str | None = None,
        cameras: Sequence[str] = CAMERAS,
        embodiment: Sequence[Any] = ("piper", "piper", 0.6),
        shader: Shader = "auto",
        success_reward: float = 5.0,
        path_actions: int = 1,
    ) -> None:
        """Nothing heavy is built yet, but it is checked that everything that is needed is there.

        Args:
            slots: scenes.
            horizon: control steps of an episode; `tasks.HORIZONS` has those of the published runs.
            threads: not used; processes run scenes side by side.
            tasks: one or several of RoboTwin's tasks, which are taken in turn.
            assets: the folder that `robotwin-download-assets` filled, or `miniature` for those that are built in.
            variation: `clean` tables, or `randomized` backgrounds, clutter, lights and heights, as published.
            train_seeds: a JSON file with the seeds of training scenes, `{task: {"success_seeds": [...]}}`; by default
                seeds are counted up, and may hold scenes that cannot be solved.
            evaluation_seeds: the same for evaluation.
            cameras: what the policy sees, in this order.
            embodiment: names of the left and the right arm and their distance in metres, or one two-armed robot's name.
            shader: `rt` traces rays, as published; `default` does not; `auto` does where the graphics card can.
            success_reward: the reward of the action that solves the task.
            path_actions: actions that are played as one motion: 1, or the policy's whole chunk, 25, as RLinf and
                SimpleVLA-RL do, where joints need not stop at each action.

        Raises:
            ConfigError: an option that RoboTwin does not have, or missing assets; names the files.
            SimulatorError: RoboTwin is not installed here.
        """
        self.slots = slots
        self.tasks = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        check_option("tasks", self.tasks, TASKS)
        check_option("cameras", cameras, CAMERAS)
        check_option("variation", variation, get_args(Variation))
        check_option("shader", shader, get_args(Shader))
        if path_actions < 1:
            raise ConfigError(f"simulator.options.path_actions: found {path_actions}; it is 1 or more")
        arms = [name for name in embodiment if isinstance(name, str)]
        if (len(embodiment), len(arms)) not in ((1, 1), (3, 2)):
            raise ConfigError(
                f"simulator.options.embodiment: {list(embodiment)}; give one robot's name, or two arms' and their "
                "distance in metres, ['piper', 'piper', 0.6]"
            )
        self.spec = SimulatorSpec(
            name=NAME,
            cameras=tuple(cameras),
            height=FRAME_HEIGHT,
            width=FRAME_WIDTH,
            actions=ACTIONS,
            proprioception_dim=len(ACTIONS),
            state_dim=0,
            horizon=horizon,
            control_hz=10.0,
            actions_together=path_actions,
        )
        self._seeds: dict[Split, Mapping[str, Sequence[int]]] = {
            "train": read_seeds("train", train_seeds, self.tasks),
            "evaluation": read_seeds("evaluation", evaluation_seeds, self.tasks),
        }
        self._variation: Variation = variation
        self._reward = success_reward
        self._copied: TemporaryDirectory[str] | None = None
        root = Path(assets).expanduser().resolve()
        if assets == MINIATURE:
            self._check_miniature(arms)
            self._copied = TemporaryDirectory(prefix="treadle-robotwin-")
            root = Path(self._copied.name)
            # SAPIEN writes beside the meshes that it reads.
            shutil.copytree(Path(__file__).parent / MINIATURE, root, dirs_exist_ok=True)
            write_things(root / "assets" / "objects")
        sources = [task_source(task) for task in self.tasks]
        check_assets(root, sources, arms, randomized=variation == "randomized")
        self._workshop = Workshop(root, embodiment, shader, wrists=bool(set(cameras) - {"head_camera"}))
        self._scenes: list[Scene | None] = [None] * slots

    def suites(self) -> tuple[str, ...]:
        """`train`; `semantic/instruction`, worded as in no training; `vision/randomized` where training is clean."""
        return tuple(
            suite
            for suite, (variation, _) in _SETTINGS.items()
            if variation is None or (variation != self._variation and self._copied is None)
        )

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """A scenario for each seed of each task, tasks in turn. Raises ConfigError for an unknown suite."""
        check_suite(NAME, suite, split, self.suites())
        length = len(self.tasks) * min(len(seeds) for seeds in self._seeds[split].values())
        return Enumeration(length, lambda index: self._scenario(suite, split, index))

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """The description of the task, for a scene fits one task, and words it once it stands."""
        return [scenario.instruction]

    def wording(self, slot: int) -> str:
        """What the scene that a slot plays asks for, in RoboTwin's words."""
        return self._at(slot).instruction

    def describe_renderer(self) -> str:
        """Vulkan's devices and drivers."""
        return f"Vulkan: {describe_vulkan()}"

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Set up each slot's scene.

        Raises SimulatorError where RoboTwin cannot; it is not tried again.
        """
        for slot, scenario in zip(slots.tolist(), scenarios, strict=True):
            if scenario.simulator != NAME or scenario.task not in self.tasks or scenario.suite not in _SETTINGS:
                raise SimulatorError(f"robotwin cannot play scenario {scenario.id}; take one of scenarios()")
            variation, wording = _SETTINGS[scenario.suite]
            self._take_down(slot)
            seed = self._seeds[scenario.split][scenario.task][scenario.index // len(self.tasks)]
            randomized = (variation or self._variation) == "randomized"
            self._scenes[slot] = self._workshop.build(scenario, seed, wording, randomized=randomized)

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Play actions [n, C, 14], at most `limits` [n] in each slot, until its success."""
        outcome = Outcome.empty(len(actions), actions.shape[1])
        for row, slot in enumerate(slots.tolist()):
            scene = self._at(slot)
            played = actions[row, : limits[row]].astype(np.float64)
            for c in range(0, len(played), self.spec.actions_together):
                motion = played[c : c + self.spec.actions_together]
                if scene.play(motion):
                    last = c + len(motion) - 1
                    outcome.reward[row, last] = self._reward
                    outcome.success[row, last] = outcome.terminated[row, last] = True
                    break
        return outcome

    def observe(self, slots: Slots, out: Observation) -> None:
        """Write frames and joint targets of each slot into row `slot` of `out`."""
        for slot in slots.tolist():
            scene = self._at(slot)
            for camera, frame in enumerate(scene.frames(self.spec.cameras)):
                out.frames[slot, camera] = frame
            out.proprioception[slot] = scene.joints()

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """The first camera's frames on black, [n, size, size, 3]."""
        frames = [self._at(slot).frames(self.spec.cameras[:1])[0] for slot in slots.tolist()]
        return np.stack([fit_square(frame, size) for frame in frames])

    def close(self) -> None:
        """Take the scenes down, and the copied assets away."""
        for slot in range(self.slots):
            self._take_down(slot)
        if self._copied is not None:
            self._copied.cleanup()

    def _take_down(self, slot: int) -> None:
        if (scene := self._scenes[slot]) is not None:
            scene.close()
            self._scenes[slot] = None

    def _at(self, slot: int) -> Scene:
        return entry_of(NAME, self._scenes, slot)

    def _scenario(self, suite: str, split: Split, index: int) -> Scenario:
        task = self.tasks[index % len(self.tasks)]
        return Scenario(NAME, suite, task, split, index, describe(task))

    def _check_miniature(self, arms: Sequence[str]) -> None:
        beyond = [task for task in self.tasks if task not in MINIATURE_TASKS]
        what = f"tasks {beyond}" if beyond else f"arms {arms}" if set(arms) != {"piper"} else ""
        what = what or ("variation 'randomized'" if self._variation == "randomized" else "")
        if what:
            raise ConfigError(
                f"simulator.options.assets: the miniature assets are not enough for {what}, only for "
                f"{', '.join(MINIATURE_TASKS)}, clean, with two piper arms; name the folder of RoboTwin's own assets, "
                "which robotwin-download-assets --output FOLDER fills"
            )
