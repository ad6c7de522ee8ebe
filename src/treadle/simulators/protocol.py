"""What a simulator supplies. Everything common (chunk endings, horizon, partial reset, statistics) is the host's.

Shapes: n slots addressed by a call, C actions of a chunk, A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome

Slots = NDArray[np.intp]


ActionKind = Literal["relative", "absolute", "gripper"]


@dataclass(frozen=True, slots=True)
class ActionDimension:
    """What one number of an action means."""

    name: str
    kind: ActionKind
    """A motion, where 0 stands still; a target, which is kept by asking for it again; or a gripper in [0, 1], where 1
    is open."""
    metres: float | None = None
    """How far a value of 1 translates; None where the dimension translates nothing."""


def tool_motions(metres: float) -> tuple[ActionDimension, ...]:
    """The seven dimensions of an arm whose tool is moved: translation, where 1 is `metres`, rotation and gripper."""
    return (
        *(ActionDimension(axis, "relative", metres) for axis in ("x", "y", "z")),
        *(ActionDimension(angle, "relative") for angle in ("roll", "pitch", "yaw")),
        ActionDimension("gripper", "gripper"),
    )


@dataclass(frozen=True, slots=True)
class SimulatorSpec:
    """The fixed facts of a simulator."""

    name: str
    cameras: tuple[str, ...]
    height: int
    width: int
    actions: tuple[ActionDimension, ...]
    """What each dimension of an action means."""
    proprioception_dim: int
    state_dim: int
    """Size of the privileged state, 0 where there is none."""
    horizon: int
    """Control steps after which an episode is cut, unless the recipe says otherwise."""
    control_hz: float
    """Control steps per second of simulated time; the speed at which videos are written."""
    actions_together: int = 1
    """Actions that are played as one motion, and that nobody may part: chunks are multiples of it."""
    held_out: bool = True
    """Training never plays a scenario of the evaluation split."""
    cautions: tuple[str, ...] = ()
    """What makes figures from here not comparable with published ones, such as physics of another version; a sentence
    each, shown before work begins."""

    @property
    def action_dim(self) -> int:
        """A: the dimensions of an action."""
        return len(self.actions)

    def observation(self, slots: int) -> Observation:
        """Zeroed arrays for what is seen of `slots` slots."""
        return Observation.empty(
            slots, len(self.cameras), self.height, self.width, self.proprioception_dim, self.state_dim
        )


class Simulator(Protocol):
    """A batch of slots, each playing one episode. Calls address slots by index; slots not addressed stand still."""

    spec: SimulatorSpec
    slots: int

    def suites(self) -> tuple[str, ...]:
        """Names of all suites. `axis` stands for the union of its `axis/setting` suites, interleaved."""
        ...

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """The enumeration of a suite; lazy, so it may be long. Raises ConfigError for an unknown suite."""
        ...

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """Every instruction that could be asked in the scenario's scene, its own among them."""
        ...

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Put each slot at the start of its scenario."""
        ...

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Play `actions` [n, C, A] one after another, at most `limits` [n] of them in each slot; a slot stops at its
        termination. Actions are un-normalised, as `SimulatorSpec.actions` says, and finite.
        """
        ...

    def observe(self, slots: Slots, out: Observation) -> None:
        """Write what the policy sees of each slot into row `slot` of `out`."""
        ...

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """Frames for people, [n, size, size, 3]; any view."""
        ...

    def close(self) -> None:
        """Release threads, processes and renderers. May be called twice."""
        ...


@runtime_checkable
class Settling(Simulator, Protocol):
    """A simulator whose episodes begin from stored states, in which things still move until they rest."""

    @property
    def physics(self) -> str:
        """What moves them, with its version."""
        ...

    def settling(self, scenario: Scenario) -> dict[str, float]:
        """How far each thing slides, in metres along the ground, while the scenario's stored state comes to rest. No
        slot plays it.
        """
        ...


@runtime_checkable
class Wording(Simulator, Protocol):
    """A simulator whose instructions depend on how the scene stands. Its scenarios hold what can be said before."""

    def wording(self, slot: int) -> str:
        """What the scene that a slot plays asks for. It follows from the scenario, as everything else does."""
        ...


@runtime_checkable
class Drawing(Simulator, Protocol):
    """A simulator whose frames depend on a renderer and its driver."""

    def describe_renderer(self) -> str:
        """What draws them, with versions."""
        ...


class Expert(Protocol):
    """A scripted controller that reads privileged state."""

    def act(self, slots: Slots) -> NDArray[np.float32]:
        """One action [n, A] for each slot; an episode's first call must come at its first step."""
        ...


class Scenes(Protocol):
    """N rendered scenes of M things each, with the truth about them."""

    frames: NDArray[np.uint8]
    """[N, H, W, 3]"""
    proprioception: NDArray[np.float32]
    """[N, P]"""
    classes: NDArray[np.int64]
    """[N, M] what each thing looks like, as an index below `class_count`."""
    positions: NDArray[np.float32]
    """[N, M, 3] metres."""
    class_count: int
    things: tuple[str, ...]
    """Names of the M things, in the order of `classes`."""
    asked: tuple[str, ...]
    """Names of the Q things that an instruction names, in the order that `ask` returns."""

    def ask(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """A random valid instruction for each row, and the things [rows, Q] that it names, as columns of `classes`."""
        ...


@runtime_checkable
class Teacher(Simulator, Protocol):
    """A simulator with a scripted expert."""

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> Expert:
        """A controller that solves the simulator's own slots. `miss_probability` is the share of episodes with an
        injected miss and recovery.
        """
        ...

    def vocabulary(self) -> Sequence[str]:
        """Texts that hold every word of the simulator's instructions."""
        ...


@runtime_checkable
class SceneTeacher(Teacher, Protocol):
    """A teacher that also renders scenes with the truth about them."""

    def scenes(self, count: int, seed: int) -> Scenes:
        """Random scenes of the training distribution, rendered, for grounding."""
        ...
