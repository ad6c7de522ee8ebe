"""LIBERO behind the protocol of simulators."""

import gc
from collections import OrderedDict
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import ConfigError
from treadle.simulators.checks import check_option, entry_of
from treadle.simulators.libero import conventions
from treadle.simulators.libero.distribution import find_distribution, physics_cautions
from treadle.simulators.libero.expert import Expert
from treadle.simulators.libero.furniture import Furniture, seeds_of
from treadle.simulators.libero.setup import use_renderer
from treadle.simulators.libero.suites import NAME, States, Suites, Task, state_of
from treadle.simulators.protocol import SimulatorSpec, Slots

if TYPE_CHECKING:
    from treadle.simulators.libero.renderer import Profile, Renderer, Screen
    from treadle.simulators.libero.scene import Place, TaskScene

CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
"""Our names and LIBERO's."""
STATE_DIM = conventions.PROPRIOCEPTION_DIM + 6 * conventions.OBJECTS + 1
"""Proprioception; of up to two objects of interest, where it is and where it is from the gripper (metres); the share of
the horizon that is over."""


class Libero:
    """Tasks of LIBERO, each with 50 initial states. Slots are stepped one after another, in the thread that calls:
    processes are what makes it faster.

    Actions [7]: see `conventions.ACTIONS`. Reward 1 at success, which ends the episode.
    """

    def __init__(
        self,
        slots: int,
        *,
        horizon: int = 512,
        threads: int = 1,
        suite: str = "object",
        tasks: Sequence[int] = (),
        states: States = "disjoint",
        image_size: int = 256,
        cameras: Sequence[str] = tuple(CAMERAS),
        render: "Profile" = "published",
        settle_steps: int = 10,
        settle_gripper: Literal["open", "still"] = "open",
        furniture: Furniture = "fresh",
        scenes: int = 4,
    ) -> None:
        """Builds no scene yet.

        Args:
            slots: episodes played at the same time.
            horizon: control steps of an episode; the suites' own: spatial 220, object 280, goal 300, 10 520, 90 400.
            threads: not used.
            suite: what suite `train` is: spatial, object, goal, 10, 90 or 130 (all of them); the axes vary it.
            tasks: keep these tasks of it, by their index; empty keeps all.
            states: `disjoint` trains on initial states 0 to 39 and evaluates on 40 to 49; `published` has all 50 in
                both, as published work does.
            image_size: pixels of a frame's side.
            cameras: of agentview and wrist, in the order in which the policy sees them.
            render: `published` draws as LIBERO does, `fast` without shadows, reflections and multisampling.
            settle_steps: control steps that pass before an episode begins.
            settle_gripper: what the gripper is told meanwhile: `open`, or `still` to stay as it is.
            furniture: where cabinets, stoves and racks stand, which initial states do not hold: `fresh` has one place
                of each for a task (SimpleVLA-RL), `per-reset` another for each state (OpenVLA-OFT), `indexed` likewise
                with a seed for each scenario (RLinf).
            scenes: tasks whose scenes are kept when no slot plays them any more; each takes about a gigabyte.

        Raises:
            ConfigError: An unknown suite, task, camera, profile or choice, or fewer than no steps.
            SimulatorError: LIBERO or its files are missing.
        """
        check_option("render", render, ("published", "fast"))
        check_option("cameras", cameras, tuple(CAMERAS))
        check_option("settle_gripper", settle_gripper, tuple(conventions.SETTLING_GRIPPER))
        check_option("furniture", furniture, ("fresh", "per-reset", "indexed"))
        if settle_steps < 0:
            raise ConfigError(f"simulator.options.settle_steps: found {settle_steps}; it is 0 or more")
        self.slots = slots
        self.spec = SimulatorSpec(
            name=NAME,
            cameras=tuple(cameras),
            height=image_size,
            width=image_size,
            actions=conventions.ACTIONS,
            proprioception_dim=conventions.PROPRIOCEPTION_DIM,
            state_dim=STATE_DIM,
            horizon=horizon,
            control_hz=conventions.CONTROL_HZ,
            held_out=states != "published",
            cautions=physics_cautions(metadata.version("mujoco")),
        )
        self._suites = Suites(find_distribution(), suite, tasks, states)
        self._profile: Profile = render
        self._settle_steps, self._settling = settle_steps, conventions.settling_action(settle_gripper)
        self._furniture: Furniture = furniture
        self._kept = scenes
        self._scenes: OrderedDict[Task, TaskScene] = OrderedDict()
        self._renderers: dict[Task, Renderer] = {}
        self._screen: Screen | None = None
        self._playing: list[tuple[TaskScene, Place] | None] = [None] * slots
        self.elapsed = np.zeros(slots, np.intp)
        """[slots] control steps that each episode has had."""

    def suites(self) -> tuple[str, ...]:
        """`train`, LIBERO's suites, and out of distribution those of LIBERO-PRO and the axes that they make up."""
        return self._suites.names()

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """Tasks times initial states. Raises ConfigError for an unknown suite."""
        return self._suites.scenarios(suite, split)

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """Those of the scenario's suite whose objects are in its scene; its own comes first."""
        return self._suites.alternatives(scenario)

    def vocabulary(self) -> Sequence[str]:
        """The instructions of all suites."""
        return self._suites.all_instructions()

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> Expert:
        """The scripted expert of these slots."""
        return Expert(self.at, self.elapsed, seed, miss_probability=miss_probability)

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Put each slot at its scenario's initial state, settled."""
        chosen = [self._suites.task(scenario) for scenario in scenarios]
        for slot in slots.tolist():
            self._playing[slot] = None
        for slot, scenario, task in zip(slots.tolist(), scenarios, chosen, strict=True):
            scene = self._scene(task, chosen)
            place = scene.place()
            scene.reset(place, state_of(scenario))
            self._settle(scene, place)
            self._playing[slot] = scene, place
            self.elapsed[slot] = 0

    @property
    def physics(self) -> str:
        """MuJoCo and its version."""
        return f"MuJoCo {metadata.version('mujoco')}"

    def describe_renderer(self) -> str:
        """OpenGL's, with the version of its driver."""
        return self._drawing().describe()

    def settling(self, scenario: Scenario) -> dict[str, float]:
        """How far each object slides, in metres along the ground, in the scenario's settling steps."""
        task = self._suites.task(scenario)
        scene = self._scene(task, [task], kept=0)
        place = scene.place()
        scene.reset(place, state_of(scenario))
        before = scene.positions(place)
        self._settle(scene, place)
        after = scene.positions(place)
        return {name: float(np.linalg.norm((after[name] - before[name])[:2])) for name in before}

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Play actions [n, C, 7], at most `limits` [n] in each slot, until its success."""
        outcome = Outcome.empty(len(actions), actions.shape[1], STATE_DIM)
        control = conventions.to_control(actions)
        for row, slot in enumerate(slots.tolist()):
            scene, place = self.at(slot)
            for c in range(int(limits[row])):
                success = scene.step(place, control[row, c])
                self.elapsed[slot] += 1
                outcome.state[row, c] = self._state(slot)
                if success:
                    outcome.reward[row, c] = 1
                    outcome.success[row, c] = outcome.terminated[row, c] = True
                    break
        return outcome

    def observe(self, slots: Slots, out: Observation) -> None:
        """Draw each slot, and write what the policy sees into row `slot` of `out`."""
        for slot in slots.tolist():
            scene, place = self.at(slot)
            renderer, (data, proprioception) = self._renderer(scene), scene.sense(place)
            for i, camera in enumerate(self.spec.cameras):
                out.frames[slot, i] = conventions.as_published(renderer.draw(data, CAMERAS[camera], self.spec.height))
            out.proprioception[slot] = proprioception
            out.state[slot] = self._state(slot)

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """The agent's view, [n, size, size, 3], with left and right as they are."""
        frames = np.zeros((len(slots), size, size, 3), np.uint8)
        for frame, slot in zip(frames, slots.tolist(), strict=True):
            scene, place = self.at(slot)
            frame[:] = self._renderer(scene).draw(scene.sense(place)[0], CAMERAS["agentview"], size)[::-1]
        return frames

    def close(self) -> None:
        """Release scenes and renderers."""
        self._playing = [None] * self.slots
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._scenes.clear()
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def at(self, slot: int) -> "tuple[TaskScene, Place]":
        """The scene that a slot plays in, and what it has of its own. Raises SimulatorError before its first reset."""
        return entry_of(NAME, self._playing, slot)

    def _settle(self, scene: "TaskScene", place: "Place") -> None:
        for _ in range(self._settle_steps):
            scene.step(place, self._settling)

    def _state(self, slot: int) -> NDArray[np.float64]:
        scene, place = self.at(slot)
        return np.append(scene.state(place), self.elapsed[slot] / self.spec.horizon)

    def _scene(self, task: Task, needed: Sequence[Task], kept: int | None = None) -> "TaskScene":
        """The scene of a task, which stays while a slot plays it or a `needed` one is it; of others, the latest `kept`,
        by default as many as the option says.
        """
        kept = self._kept if kept is None else kept
        if task in self._scenes:
            self._scenes.move_to_end(task)
            return self._scenes[task]
        use_renderer()
        from treadle.simulators.libero.scene import TaskScene

        busy = {playing[0].task for playing in self._playing if playing} | set(needed)
        idle = [other for other in self._scenes if other not in busy]
        dropped = idle[: max(0, len(self._scenes) + 1 - kept)]
        for other in dropped:
            del self._scenes[other]
            if other in self._renderers:
                self._renderers.pop(other).close()
        if dropped:
            # Parts of robosuite's environment hold each other, so a gigabyte would stay until Python looks for cycles.
            gc.collect()
        self._scenes[task] = TaskScene(task, seeds_of(self._furniture, *self._suites.place_of(task)))
        return self._scenes[task]

    def _renderer(self, scene: "TaskScene") -> "Renderer":
        from treadle.simulators.libero.renderer import Renderer

        if scene.task not in self._renderers:
            self._renderers[scene.task] = Renderer(self._drawing(), scene.model, self._profile, self.spec.height)
        return self._renderers[scene.task]

    def _drawing(self) -> "Screen":
        use_renderer()
        from treadle.simulators.libero.renderer import Screen

        self._screen = self._screen or Screen()
        return self._screen
