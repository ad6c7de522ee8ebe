"""What a simulator supplies. Everything common (chunk endings, horizon, partial reset, statistics) is the host's.

Shapes: n slots addressed by a call, C actions of a chunk, A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome

Slots = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class SimulatorSpec:
    """The fixed facts of a simulator."""

    name: str
    cameras: tuple[str, ...]
    height: int
    width: int
    action_dim: int
    proprioception_dim: int
    state_dim: int
    """Size of the privileged state, 0 where there is none."""
    horizon: int
    """Control steps after which an episode is cut, unless the recipe says otherwise."""
    control_hz: float
    """Control steps per second of simulated time; the speed at which videos are written."""


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
        termination. Actions are in the policy's convention (un-normalised), gripper in [0, 1], 1 open.
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
class StepsAndObserves(Simulator, Protocol):
    """A simulator that is better asked once than twice, for its slots are elsewhere."""

    def step_and_observe(
        self,
        slots: Slots,
        actions: NDArray[np.float32],
        limits: NDArray[np.intp],
        wanted: NDArray[np.bool_],
        out: Observation,
    ) -> Outcome:
        """As `step`, and then `observe` for those of the slots that are `wanted` [n] and did not terminate."""
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

    def ask(self, rng: np.random.Generator, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """A random valid instruction for each row, and the two things [rows, 2] that it names."""
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
