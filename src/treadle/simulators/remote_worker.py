"""A simulator served to another process: it does what `treadle.simulators.remote` asks. Imports numpy, never torch."""

from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.errors import SimulatorError
from treadle.simulators.bare import BareLoop, bare_loop
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.process import Failure
from treadle.simulators.protocol import Expert, Simulator, Slots, Teacher
from treadle.simulators.shared_arrays import map_arrays, observation_layout


class Served:
    """The calls of a `RemoteSimulator` on the simulator itself; slots are this worker's own."""

    def __init__(self, simulator: Simulator, memory: int) -> None:
        self._simulator = simulator
        self._seen = Observation(
            **map_arrays(observation_layout(simulator.slots, simulator.spec), memory),
            instructions=[""] * simulator.slots,
        )
        self._experts: list[Expert] = []
        self._bare: BareLoop | None = None

    def length(self, suite: str, split: Split) -> int:
        """How many scenarios a suite has."""
        return len(self._simulator.scenarios(suite, split))

    def scenarios(self, suite: str, split: Split, part: slice) -> list[Scenario]:
        """Some of them."""
        return list(self._simulator.scenarios(suite, split)[part])

    def instructions(self, scenario: Scenario) -> list[str]:
        """See `Simulator.instructions`."""
        return list(self._simulator.instructions(scenario))

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """See `Simulator.reset`."""
        self._simulator.reset(slots, scenarios)

    def replay(self, slots: Slots, scenarios: Sequence[Scenario], tracks: Sequence[NDArray[np.float32]]) -> None:
        """Reset slots and play actions [n, A] again; an episode that ends on the way starts over."""
        self._simulator.reset(slots, scenarios)
        counts = np.array([len(track) for track in tracks])
        if not counts.any():
            return
        actions = np.zeros((len(slots), counts.max(), self._simulator.spec.action_dim), np.float32)
        for row, track in enumerate(tracks):
            actions[row, : len(track)] = track
        outcome = self._simulator.step(slots, actions, counts)
        over = np.flatnonzero(outcome.terminated.any(axis=1))
        if len(over):
            self._simulator.reset(slots[over], [scenarios[row] for row in over.tolist()])

    def observe(self, slots: Slots) -> list[str]:
        """Write observations into the shared memory; returns their instructions."""
        self._simulator.observe(slots, self._seen)
        return [self._seen.instructions[slot] for slot in slots.tolist()]

    def step_and_observe(
        self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp], wanted: NDArray[np.bool_]
    ) -> tuple[tuple[NDArray[Any], ...], list[str]]:
        """See `StepsAndObserves.step_and_observe`; the fields of the `Outcome`, and the instructions."""
        outcome = self._simulator.step(slots, actions, limits)
        seen = slots[wanted & ~outcome.terminated.any(axis=1)]
        fields = (outcome.reward, outcome.terminated, outcome.success, outcome.state)
        return fields, self.observe(seen) if len(seen) else []

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """See `Simulator.render`."""
        return self._simulator.render(slots, size)

    def bare(self, scenario: Scenario) -> None:
        """Make a bare loop, in place of one that is there."""
        self._bare = bare_loop(self._simulator, scenario)

    def play_bare(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`."""
        if self._bare is None:
            raise SimulatorError("the bare loop is lost with the worker that had it; start over")
        self._bare.play(actions)

    def close_bare(self) -> None:
        """See `BareLoop.close`."""
        if self._bare is not None:
            self._bare.close()
            self._bare = None

    def vocabulary(self) -> list[str]:
        """See `Teacher.vocabulary`."""
        assert isinstance(self._simulator, Teacher)
        return list(self._simulator.vocabulary())

    def expert(self, seed: int, miss_probability: float) -> int:
        """Make an expert; returns its number."""
        assert isinstance(self._simulator, Teacher)
        self._experts.append(self._simulator.expert(seed, miss_probability=miss_probability))
        return len(self._experts) - 1

    def act(self, expert: int, slots: Slots) -> NDArray[np.float32]:
        """See `Expert.act`."""
        return self._experts[expert].act(slots)


def main(connection: Connection, memory: int) -> None:
    """Build a simulator, tell what it is, and answer calls until told to end."""
    factory: SimulatorFactory
    simulator: Simulator | None = None
    doing = "building the simulator"
    try:
        factory, slots = connection.recv()
        simulator = factory(slots)
        connection.send((simulator.spec, simulator.suites(), isinstance(simulator, Teacher)))
        if connection.recv() is None:
            return
        served = Served(simulator, memory)
        while (call := connection.recv()) is not None:
            name, arguments = call
            doing = name
            connection.send(_answer(served, name, arguments))
    except (EOFError, ConnectionError):
        # The other side is gone, and with it everyone who could be told.
        pass
    except Exception as error:  # noqa: BLE001 - carried to the other side, which raises it
        with suppress(ConnectionError):
            connection.send(Failure.of(error, doing))
    finally:
        if simulator is not None:
            simulator.close()
        connection.close()


def _answer(served: Served, name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return getattr(served, name)(*arguments)
    except Exception as error:  # noqa: BLE001 - carried to the other side, which raises it
        return Failure.of(error)
