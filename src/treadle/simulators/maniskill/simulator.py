"""The batched simulator: one environment per slot on the CPU, one environment of all slots on CUDA."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import ConfigError, SimulatorError
from treadle.simulators.checks import check_option, entry_of
from treadle.simulators.maniskill.built_in import BUILT_IN
from treadle.simulators.maniskill.expert import Expert
from treadle.simulators.maniskill.put_on_plate.settings import Drops
from treadle.simulators.maniskill.put_on_plate.task import PUT_ON_PLATE, Episodes, PutOnPlateTask
from treadle.simulators.maniskill.task import ACTIONS, NAME, Task
from treadle.simulators.protocol import SimulatorSpec, Slots
from treadle.simulators.vulkan import describe_vulkan

if TYPE_CHECKING:
    from treadle.simulators.maniskill.engine import Engine

PROPRIOCEPTION_DIM = 8


class ManiSkill:
    """A task of ManiSkill 3, chosen by name. Nothing of ManiSkill is loaded before the first reset.

    Actions [7]: dx, dy, dz in metres, rotation about x, y, z of the arm's base in radians, gripper (> 0.5 opens).
    """

    def __init__(
        self,
        slots: int,
        *,
        horizon: int = 60,
        threads: int = 0,
        task: str = "PickCube-v1",
        image_size: int | Literal["camera"] = 128,
        reward: Literal["shaped", "sparse", "dense"] = "shaped",
        device: Literal["cpu", "cuda"] = "cpu",
        render: Literal["published", "fast"] = "published",
        assets: str = "",
        episodes: Episodes = "enumerated",
        drops: Drops = "rl4vla",
        after_success: Literal["end", "continue"] = "end",
    ) -> None:
        """Choose a task.

        Args:
            slots: episodes at once. On the CPU they take turns; more workers play more of them at a time.
            horizon: control steps after which an episode is cut.
            threads: of a worker process's software renderer and torch; has no effect on this class.
            task: "PutOnPlateInScene25", or a name in `BUILT_IN`.
            image_size: pixels of a frame's side; "camera" has frames as large as PutOnPlateInScene25's camera draws
                them, 640 x 480.
            reward: "sparse" is 1 at success; "shaped" the difference that an action made to the task's score, and for
                built-in tasks 1 at success beside it; "dense" the score itself, as ManiSkill's dense reward is.
            device: where physics and rendering run.
            render: `published` draws as ManiSkill does, `fast` without details of meshes that are smaller than a pixel;
                on the CPU alone.
            assets: folder of the published assets of PutOnPlateInScene25; empty for generated ones.
            episodes: of PutOnPlateInScene25: `enumerated` has every episode once, in disjoint splits; `drawn` has those
                that RLinf draws, alike in both splits.
            drops: of PutOnPlateInScene25: whose heights things are let go at before an episode.
            after_success: whether success ends an episode, or it goes on to its horizon, as published ones do.

        Raises:
            ConfigError: An option has a value that is not allowed, or is not the task's.
            SimulatorError: Assets are missing.
        """
        check_option("reward", reward, ("shaped", "sparse", "dense"))
        check_option("device", device, ("cpu", "cuda"))
        check_option("render", render, ("published", "fast"))
        check_option("episodes", episodes, ("enumerated", "drawn"))
        check_option("drops", drops, ("rl4vla", "rlinf"))
        check_option("after_success", after_success, ("end", "continue"))
        if render == "fast" and device == "cuda":
            raise ConfigError(
                "simulator.options.render: found 'fast' with device 'cuda'; a GPU draws all triangles: leave it out"
            )
        self.slots = slots
        self.task = find_task(task, assets, episodes, drops)
        height, width = self._frame_size(image_size)
        self.spec = SimulatorSpec(
            name=NAME,
            cameras=self.task.cameras,
            height=height,
            width=width,
            actions=ACTIONS,
            proprioception_dim=PROPRIOCEPTION_DIM,
            state_dim=self.task.state_dim + 2,
            horizon=horizon,
            control_hz=self.task.control_hz,
        )
        self._reward = reward
        self._device = device
        self._coarse = render == "fast"
        self._size = None if image_size == "camera" else image_size
        self._success_ends = after_success == "end"
        self._engines: list[Engine] = []
        self._played: list[Scenario | None] = [None] * slots
        self._state = np.zeros((slots, self.spec.state_dim), np.float32)
        self._score = np.zeros(slots, np.float32)
        self.elapsed = np.zeros(slots, np.intp)
        """[B] control steps since each slot's reset."""

    def suites(self) -> tuple[str, ...]:
        """Those of the task; `train` is in distribution."""
        return self.task.suites()

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """Starts of the task, lazily. Raises ConfigError for an unknown suite."""
        return self.task.scenarios(suite, split)

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """What could be asked in the scenario's scene, its own instruction first."""
        return self.task.instructions(scenario)

    def vocabulary(self) -> Sequence[str]:
        """Every word of the instructions."""
        return self.task.vocabulary()

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> Expert:
        """The scripted expert of these slots. Raises SimulatorError for a task that has none."""
        return Expert(self.task.name, self.engine, self.elapsed, seed, miss_probability=miss_probability)

    def describe_renderer(self) -> str:
        """Vulkan's devices and drivers."""
        return f"Vulkan: {describe_vulkan()}"

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Put each slot at the start of its scenario."""
        for slot, scenario in zip(slots.tolist(), scenarios, strict=True):
            if scenario.simulator != NAME or scenario.task != self.task.name:
                raise SimulatorError(
                    f"maniskill plays {self.task.name} here and cannot play scenario {scenario.id} of "
                    f"{scenario.task} (slot {slot}); take one of scenarios()"
                )
            engine, row = self.engine(slot)
            moment = engine.reset(row, scenario)
            self._played[slot] = scenario
            self.elapsed[slot] = 0
            self._note(np.array([slot]), moment.score, moment.state)

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Play actions [n, C, 7], at most `limits` [n] in each slot, until its success where that ends an episode."""
        for slot in slots.tolist():
            entry_of(NAME, self._played, slot)
        outcome = Outcome.empty(len(slots), actions.shape[1], self.spec.state_dim)
        for engine, rows, places in self._by_engine(slots):
            for c in range(actions.shape[1]):
                going = limits[places] > c
                rows, places = rows[going], places[going]
                if not len(rows):
                    break
                now = slots[places]
                before = self._score[now]
                moment = engine.step(rows, actions[places, c])
                self.elapsed[now] += 1
                self._note(now, moment.score, moment.state)
                outcome.reward[places, c] = {
                    "sparse": moment.success.astype(np.float32),
                    "dense": moment.score,
                    "shaped": moment.score - before + self.task.success_bonus * moment.success,
                }[self._reward]
                over = moment.success & self._success_ends
                outcome.success[places, c], outcome.terminated[places, c] = moment.success, over
                outcome.state[places, c] = self._state[now]
                rows, places = rows[~over], places[~over]
        return outcome

    def observe(self, slots: Slots, out: Observation) -> None:
        """Write frames, proprioception and state of each slot into row `slot` of `out`."""
        for engine, rows, places in self._by_engine(slots):
            here = slots[places]
            for index, camera in enumerate(self.spec.cameras):
                # One copy from the device that rendered, whatever the number of slots.
                out.frames[here, index] = engine.draw(camera).cpu().numpy()[rows]
            out.proprioception[here] = engine.proprioception(rows)
        out.state[slots] = self._state[slots]

    def device_frames(self, camera: str) -> Any:
        """What a camera sees in every slot, a uint8 tensor [B, H, W, 3] that stays on the device that rendered it."""
        from torch import cat

        engines = {id(engine): engine for engine, _ in map(self.engine, range(self.slots))}
        return cat([engine.draw(camera) for engine in engines.values()])

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """Frames of ManiSkill's camera for people, [n, size, size, 3]."""
        from PIL import Image

        frames = np.zeros((len(slots), size, size, 3), np.uint8)
        for place, slot in enumerate(slots.tolist()):
            entry_of(NAME, self._played, slot)
            engine, row = self.engine(slot)
            picture = Image.fromarray(engine.portrait(row)).resize((size, size), Image.Resampling.LANCZOS)
            frames[place] = np.asarray(picture)
        return frames

    def close(self) -> None:
        """Close every environment."""
        for engine in self._engines:
            engine.close()
        self._engines = []

    def engine(self, slot: int) -> "tuple[Engine, int]":
        """The environment that plays a slot, and the slot's row in it."""
        if not self._engines:
            from treadle.simulators.maniskill.engine import Engine

            counts = [self.slots] if self._device == "cuda" else [1] * self.slots
            self._engines = [Engine(self.task, count, self._size, self._device, self._coarse) for count in counts]
        return (self._engines[0], slot) if len(self._engines) == 1 else (self._engines[slot], 0)

    def _frame_size(self, image_size: int | Literal["camera"]) -> tuple[int, int]:
        if isinstance(image_size, int):
            return image_size, image_size
        check_option("image_size", image_size, ("camera",))
        if self.task.camera_size is None:
            raise ConfigError(
                f"simulator.options.image_size: found 'camera' with task {self.task.name}, whose camera draws at any "
                "size; give pixels"
            )
        return self.task.camera_size

    def _by_engine(self, slots: Slots) -> "list[tuple[Engine, Slots, Slots]]":
        """Each environment that plays some of the slots, with its rows and their places in `slots`."""
        if self._device == "cuda":
            return [(self.engine(0)[0], slots, np.arange(len(slots)))]
        found = map(self.engine, slots.tolist())
        return [(engine, np.array([row]), np.array([place])) for place, (engine, row) in enumerate(found)]

    def _note(self, slots: Slots, score: NDArray[np.float32], state: NDArray[np.float32]) -> None:
        """Remember the score, and the privileged state: ManiSkill's own, the score, and the share of time left."""
        if state.shape[1] != self.task.state_dim:
            raise SimulatorError(
                f"maniskill: {self.task.name} has a state of {state.shape[1]} numbers and {self.task.state_dim} were "
                "expected; install the pinned version with `treadle simulators install maniskill`"
            )
        left = 1 - self.elapsed[slots] / self.spec.horizon
        self._score[slots] = score
        self._state[slots] = np.column_stack([state, score, left])


def find_task(name: str, assets: str, episodes: Episodes = "enumerated", drops: Drops = "rl4vla") -> Task:
    """The task of this name. Raises ConfigError for an unknown one, SimulatorError for missing assets."""
    if name == PUT_ON_PLATE:
        return PutOnPlateTask(Path(assets) if assets else None, episodes, drops)
    if name not in BUILT_IN:
        names = ", ".join((PUT_ON_PLATE, *BUILT_IN))
        raise ConfigError(f"simulator.options.task: found {name!r}; choose one of {names}")
    given = {"assets": (assets, ""), "episodes": (episodes, "enumerated"), "drops": (drops, "rl4vla")}
    for option, (found, default) in given.items():
        if found != default:
            raise ConfigError(
                f"simulator.options.{option}: found {found!r} with task {name}; only {PUT_ON_PLATE} has {option}"
            )
    return BUILT_IN[name]
