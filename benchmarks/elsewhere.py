"""A simulator that lives in a worker, called method by method: for what measures or checks it, not for what plays it.

Nothing is overlapped, replayed or watched over here; that is what lanes are for. Imports numpy alone.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.simulators.enumeration import Enumeration
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.protocol import Expert, Simulator, Slots, Teacher
from treadle.workers.crew import Crew, CrewPlan

if TYPE_CHECKING:
    from treadle.config.schema import SimulatorConfig

INVOKE, OBSERVE, SHOW, EXPERT, ACT = (
    f"{__name__}:{name}" for name in ("invoke", "observe", "show", "make_expert", "act")
)

_experts: list[Expert] = []
"""Of the worker that this module is imported in."""


class Elsewhere:
    """A `Teacher` whose slots live in the one worker of a crew."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self.spec = crew.spec
        self.slots = crew.plan.slots

    def suites(self) -> tuple[str, ...]:
        """See `Simulator.suites`."""
        return self.crew.suites

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """See `Simulator.scenarios`."""
        return Enumeration(
            self.crew.count(suite, split), lambda index: self.crew.scenarios(suite, split, index, index + 1)[0]
        )

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """See `Simulator.instructions`."""
        return self.crew.call(INVOKE, "instructions", scenario)

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """See `Simulator.reset`."""
        self.crew.call(INVOKE, "reset", slots, scenarios)

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """See `Simulator.step`."""
        return self.crew.call(INVOKE, "step", slots, actions, limits)

    def observe(self, slots: Slots, out: Observation) -> None:
        """See `Simulator.observe`."""
        seen: Observation = self.crew.call(OBSERVE, slots)
        out.frames[slots], out.proprioception[slots], out.state[slots] = seen.frames, seen.proprioception, seen.state

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """See `Simulator.render`."""
        return self.crew.call(INVOKE, "render", slots, size)

    def vocabulary(self) -> Sequence[str]:
        """See `Teacher.vocabulary`."""
        return self.crew.call(INVOKE, "vocabulary")

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> Expert:
        """See `Teacher.expert`."""
        return _ElsewhereExpert(self.crew, self.crew.call(EXPERT, seed, miss_probability))

    def close(self) -> None:
        """See `Simulator.close`."""
        self.crew.close()


class _ElsewhereExpert:
    def __init__(self, crew: Crew, number: int) -> None:
        self._crew = crew
        self._number = number

    def act(self, slots: Slots) -> NDArray[np.float32]:
        return self._crew.call(ACT, self._number, slots)


def open_simulator(config: "SimulatorConfig", slots: int | None = None) -> Simulator:
    """The simulator of a configuration: in this process, or in a worker where it lives in another Python.

    Raises what building the simulator raises.
    """
    # Not above: workers import this module, and numpy alone.
    from treadle.config.schema import CollectionConfig
    from treadle.workers.plan import plan_crew

    plan = plan_crew(config, CollectionConfig(lanes=1, workers=1), accelerated=False, slots=slots)
    return plan.factory(plan.slots) if plan.kind == "threads" else Elsewhere(Crew(plan))


def open_in_a_process(factory: SimulatorFactory, slots: int, timeout: float = 600.0) -> Elsewhere:
    """A simulator that has one worker process. Raises what building the simulator raises."""
    with ExitStack() as opened:
        crew = opened.enter_context(Crew(CrewPlan(factory, slots, kind="processes", timeout=timeout)))
        opened.pop_all()
    return Elsewhere(crew)


# Called in the worker.


def invoke(simulator: Simulator, method: str, *arguments: Any) -> Any:
    """What a method returns."""
    return getattr(simulator, method)(*arguments)


def observe(simulator: Simulator, slots: Slots) -> Observation:
    """What is seen of some slots, one row each."""
    seen = simulator.spec.observation(simulator.slots)
    simulator.observe(slots, seen)
    return seen.take(slots)


def show(simulator: Simulator, shown: bool) -> None:
    """Let the simulator observe nothing from here on, or again as it does."""
    if shown:
        vars(simulator).pop("observe", None)
    else:
        vars(simulator)["observe"] = lambda slots, out: None  # noqa: ARG005


def make_expert(simulator: Teacher, seed: int, miss_probability: float) -> int:
    """Make an expert; returns its number."""
    _experts.append(simulator.expert(seed, miss_probability=miss_probability))
    return len(_experts) - 1


def act(_: Teacher, number: int, slots: Slots) -> NDArray[np.float32]:
    """One action of an expert for each slot."""
    return _experts[number].act(slots)
