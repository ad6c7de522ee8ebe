"""A simulator whose slots are divided among worker processes, as if it were here; they may run in another Python.

Frames cross by shared memory. A worker that fails, dies or hangs is replaced: its slots restart with their scenarios,
play again what they had played, and go on.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.process import Failure, SharedFile, WorkerProcess
from treadle.simulators.protocol import SimulatorSpec, Slots
from treadle.simulators.shared_arrays import layout_bytes, map_arrays, observation_layout

ATTEMPTS = 3
"""Failures in a row after which a call raises."""
TIMEOUT = 600.0
"""Seconds that a worker may take to build its simulator, or for a call."""
_GRACE = 5.0
_NOTHING = Observation.empty(0, 0, 0, 0, 0, 0)
"""Where no slot is looked at."""

_log = logging.getLogger(__name__)


class RemoteScenarios(Sequence[Scenario]):
    """The enumeration of a suite, asked for entry by entry."""

    def __init__(self, worker: "RemoteWorker", suite: str, split: Split) -> None:
        self._worker = worker
        self._suite = suite
        self._split = split
        self._length: int = worker.call("length", suite, split)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Scenario: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Scenario]: ...
    def __getitem__(self, index: int | slice) -> Scenario | Sequence[Scenario]:
        if isinstance(index, slice):
            return self._worker.call("scenarios", self._suite, self._split, index)
        position = range(self._length)[index]
        return self._worker.call("scenarios", self._suite, self._split, slice(position, position + 1))[0]


class RemoteWorker:
    """One worker process: slots `first` to `stop` of a simulator, and what they have played."""

    def __init__(self, factory: SimulatorFactory, name: str, first: int, stop: int, timeout: float) -> None:
        self.first = first
        self.stop = stop
        self.experts = 0
        """How many it was asked to make; they are lost with it."""
        self._factory = factory
        self._name = name
        self._timeout = timeout
        self._scenarios: list[Scenario | None] = [None] * (stop - first)
        self._tracks: list[list[NDArray[np.float32]]] = [[] for _ in self._scenarios]
        self._memory = SharedFile()
        self._process = self._start()

    def open(self) -> tuple[SimulatorSpec, tuple[str, ...], bool]:
        """Wait until the simulator is built; returns its spec, its suites and whether it teaches."""
        hello = self._receive()
        if isinstance(hello, Failure):
            hello.message = f"{self._name}: {hello.message}"
            hello.throw()
        layout = observation_layout(self.stop - self.first, hello[0])
        self._memory.resize(layout_bytes(layout))
        self.seen = map_arrays(layout, self._memory)
        self._send("open")
        return hello

    def ask(self, name: str, *arguments: Any) -> None:
        """Begin a call, for `answer` to end."""
        self._send((name, arguments))

    def answer(self, name: str, *arguments: Any) -> Any:
        """What came of a call that was begun; where its worker fails, a fresh one takes the slots up and is asked
        again. Raises what the worker raised, or SimulatorError where it died or hung.
        """
        said, attempts = self._receive(), 1
        while isinstance(said, Failure):
            if said.final:
                said.throw()
            said.message = f"{self._name}: {name}, playing {self._playing()}: {said.message}"
            if self.experts:
                said.throw(". Its scripted expert is lost with it; start over")
            if attempts == ATTEMPTS:
                said.throw(f" ({attempts} times in a row)")
            _log.warning("%s. Its slots restart with their scenarios", said.message)
            said, attempts = self._again(name, *arguments), attempts + 1
        return said

    def call(self, name: str, *arguments: Any) -> Any:
        """Ask and wait."""
        self.ask(name, *arguments)
        return self.answer(name, *arguments)

    def began(self, slot: int, scenario: Scenario) -> None:
        """Take down that one of its slots was reset."""
        self._scenarios[slot - self.first] = scenario
        self._tracks[slot - self.first] = []

    def played(self, slot: int, actions: NDArray[np.float32]) -> None:
        """Take down what one of its slots has played, [n, A]."""
        self._tracks[slot - self.first].append(actions.copy())

    def close(self, deadline: float) -> None:
        """Wait until the worker has closed its simulator, or end it at `deadline`, of `time.monotonic()`."""
        self._process.stop(deadline)
        self._memory.close()

    def ask_to_end(self) -> None:
        """Let the worker close its simulator and end."""
        self._send(None)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def _again(self, name: str, *arguments: Any) -> Any:
        self._process.stop(time.monotonic())
        self._process = self._start()
        hello = self._receive()
        if isinstance(hello, Failure):
            return hello
        self._send("open")
        playing = [slot for slot, scenario in enumerate(self._scenarios) if scenario is not None]
        if playing:
            empty = np.zeros((0, hello[0].action_dim), np.float32)
            tracks = [np.concatenate([empty, *self._tracks[slot]]) for slot in playing]
            self._send(("replay", (np.array(playing), [self._scenarios[slot] for slot in playing], tracks)))
            if isinstance(failure := self._receive(), Failure):
                return failure
        self.ask(name, *arguments)
        return self._receive()

    def _start(self) -> WorkerProcess:
        process = self._factory.start("treadle.simulators.remote_worker", self._memory)
        process.connection.send((self._factory, self.stop - self.first))
        return process

    def _send(self, message: Any) -> None:
        # That the worker is gone shows where its answer is awaited.
        with suppress(ConnectionError):
            self._process.connection.send(message)

    def _receive(self) -> Any:
        """What the worker says, or how it failed."""
        try:
            if self._process.connection.poll(self._timeout):
                return self._process.connection.recv()
        except (EOFError, ConnectionError):
            return Failure(self._process.ending())
        self._process.dump_stack()
        return Failure(f"no answer for {self._timeout:g} s; where it stands is on stderr")

    def _playing(self, shown: int = 3) -> str:
        names = [scenario.id for scenario in self._scenarios if scenario is not None] or ["nothing yet"]
        return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


class RemoteSimulator:
    """A `Simulator` of slots that live in worker processes, each with a simulator of its share; see `open_remote`."""

    def __init__(self, workers: Sequence[RemoteWorker], spec: SimulatorSpec, suites: tuple[str, ...]) -> None:
        self.spec = spec
        self.slots = workers[-1].stop
        self._workers = list(workers)
        self._suites = suites
        self._edges = np.array([worker.stop for worker in workers])

    def suites(self) -> tuple[str, ...]:
        """See `Simulator.suites`."""
        return self._suites

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """See `Simulator.scenarios`."""
        return RemoteScenarios(self._workers[0], suite, split)

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """See `Simulator.instructions`."""
        return self._workers[0].call("instructions", scenario)

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """See `Simulator.reset`."""
        shares = self._shares(slots)
        for worker, rows in shares.items():
            # Before it is asked: a worker that fails in a reset is to come up with what it was to begin.
            for row in rows.tolist():
                self._workers[worker].began(int(slots[row]), scenarios[row])
        self._call_all(
            "reset",
            {w: (self._own(w, slots[rows]), [scenarios[r] for r in rows.tolist()]) for w, rows in shares.items()},
        )

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """See `Simulator.step`."""
        return self.step_and_observe(slots, actions, limits, np.zeros(len(slots), np.bool_), _NOTHING)

    def observe(self, slots: Slots, out: Observation) -> None:
        """See `Simulator.observe`."""
        shares = self._shares(slots)
        calls = {w: (self._own(w, slots[rows]),) for w, rows in shares.items()}
        for worker, instructions in self._call_all("observe", calls).items():
            self._seen(worker, slots[shares[worker]], instructions, out)

    def step_and_observe(
        self,
        slots: Slots,
        actions: NDArray[np.float32],
        limits: NDArray[np.intp],
        wanted: NDArray[np.bool_],
        out: Observation,
    ) -> Outcome:
        """See `StepsAndObserves.step_and_observe`; a worker draws as soon as its own slots have played."""
        shares = self._shares(slots)
        calls = {w: (self._own(w, slots[r]), actions[r], limits[r], wanted[r]) for w, r in shares.items()}
        outcome = Outcome.empty(len(slots), actions.shape[1], self.spec.state_dim)
        for worker, (fields, instructions) in self._call_all("step_and_observe", calls).items():
            rows = shares[worker]
            outcome.reward[rows], outcome.terminated[rows], outcome.success[rows], outcome.state[rows] = fields
            for row in rows.tolist():
                self._workers[worker].played(int(slots[row]), actions[row, : limits[row]])
            seen = slots[rows[wanted[rows] & ~outcome.terminated[rows].any(axis=1)]]
            if len(seen):
                self._seen(worker, seen, instructions, out)
        return outcome

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """See `Simulator.render`."""
        frames = np.zeros((len(slots), size, size, 3), np.uint8)
        shares = self._shares(slots)
        calls = {w: (self._own(w, slots[rows]), size) for w, rows in shares.items()}
        for worker, theirs in self._call_all("render", calls).items():
            frames[shares[worker]] = theirs
        return frames

    def bare(self, scenario: Scenario) -> "RemoteLoop":
        """See `treadle.simulators.bare.bare_loop`; it runs in the first worker."""
        self._workers[0].call("bare", scenario)
        return RemoteLoop(self._workers[0])

    def close(self) -> None:
        """See `Simulator.close`."""
        workers, self._workers = self._workers, []
        _close(workers)

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [worker.pid for worker in self._workers]

    def _seen(self, worker: int, slots: Slots, instructions: Sequence[str], out: Observation) -> None:
        """Copy what a worker has written of its slots."""
        own = self._own(worker, slots)
        for name, array in self._workers[worker].seen.items():
            getattr(out, name)[slots] = array[own]
        for slot, instruction in zip(slots.tolist(), instructions, strict=True):
            out.instructions[slot] = instruction

    def _shares(self, slots: Slots) -> dict[int, NDArray[np.intp]]:
        """For each worker that has some of the slots, which rows of `slots` they are."""
        owners = np.searchsorted(self._edges, slots, side="right")
        return {int(worker): np.flatnonzero(owners == worker) for worker in np.unique(owners)}

    def _own(self, worker: int, slots: Slots) -> Slots:
        return slots - self._workers[worker].first

    def _call_all(self, name: str, calls: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Call several workers side by side."""
        for worker, arguments in calls.items():
            self._workers[worker].ask(name, *arguments)
        return {worker: self._workers[worker].answer(name, *arguments) for worker, arguments in calls.items()}


class RemoteLoop:
    """The `BareLoop` of a `RemoteSimulator`."""

    def __init__(self, worker: RemoteWorker) -> None:
        self._worker = worker

    def play(self, actions: NDArray[np.float32]) -> None:
        """See `BareLoop.play`; all of them are one call."""
        self._worker.call("play_bare", actions)

    def close(self) -> None:
        """See `BareLoop.close`."""
        self._worker.call("close_bare")


class RemoteTeacher(RemoteSimulator):
    """A `RemoteSimulator` whose simulator has an expert."""

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> "RemoteExpert":
        """See `Teacher.expert`; each worker has one, with a seed of its own."""
        arguments = {w: (seed + worker.first, miss_probability) for w, worker in enumerate(self._workers)}
        numbers = self._call_all("expert", arguments)
        for worker in self._workers:
            worker.experts += 1
        return RemoteExpert(self, numbers)

    def vocabulary(self) -> Sequence[str]:
        """See `Teacher.vocabulary`."""
        return self._workers[0].call("vocabulary")

    def act(self, numbers: Mapping[int, int], slots: Slots) -> NDArray[np.float32]:
        """One action [n, A] of the experts for each slot."""
        actions = np.zeros((len(slots), self.spec.action_dim), np.float32)
        shares = self._shares(slots)
        calls = {w: (numbers[w], self._own(w, slots[rows])) for w, rows in shares.items()}
        for worker, theirs in self._call_all("act", calls).items():
            actions[shares[worker]] = theirs
        return actions


class RemoteExpert:
    """The `Expert` of a `RemoteTeacher`."""

    def __init__(self, simulator: RemoteTeacher, numbers: Mapping[int, int]) -> None:
        self._simulator = simulator
        self._numbers = numbers

    def act(self, slots: Slots) -> NDArray[np.float32]:
        """See `Expert.act`."""
        return self._simulator.act(self._numbers, slots)


def open_remote(factory: SimulatorFactory, slots: int, processes: int, timeout: float = TIMEOUT) -> RemoteSimulator:
    """Start `processes` workers, at most one a slot, and divide the slots among them.

    Raises:
        TreadleError: A worker could not build its simulator, or not within `timeout` seconds; what it raised.
        WorkerError: It raised something else.
    """
    count = min(slots, processes)
    edges = [slots * i // count for i in range(count + 1)]
    with ExitStack() as opened:
        workers: list[RemoteWorker] = []
        opened.callback(lambda: _close(workers, grace=0.0))
        for number, (first, stop) in enumerate(pairwise(edges)):
            name = f"simulator, worker {number} of {count}"
            workers.append(RemoteWorker(factory, name, first, stop, timeout))
        (spec, suites, teaches), *_ = [worker.open() for worker in workers]
        opened.pop_all()
    return (RemoteTeacher if teaches else RemoteSimulator)(workers, spec, suites)


def _close(workers: Iterable[RemoteWorker], grace: float = _GRACE) -> None:
    workers, deadline = list(workers), time.monotonic() + grace
    # All are asked before one is waited for, so that they close side by side.
    for worker in workers:
        worker.ask_to_end()
    with ExitStack() as closing:
        for worker in workers:
            closing.callback(worker.close, deadline)
