"""Lanes: groups of slots that advance together, each on its own, while the policy thinks about another.

Shapes: B slots of all lanes.
"""

import selectors
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from treadle import errors
from treadle.data.scenario import Scenario
from treadle.data.span import Span
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError, SimulatorError
from treadle.rollout.board import Board, BoardShape
from treadle.rollout.worker import PLAY, RESTORE, SAVE, START, Failure, Part, Report, WorkerPlan
from treadle.rollout.worker_handle import ProcessWorker, SharedBoard, ThreadWorker, WorkerHandle
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import KeepFinal
from treadle.simulators.protocol import SimulatorSpec

Rows = slice | NDArray[np.intp]
"""Slots of a board: neighbours, or any."""

_GRACE, _GRACE_ON_ERROR = 5.0, 1.0
"""Seconds that workers have to close their simulators."""


class WorkerError(RuntimeError):
    """What a worker raised that is not the user's to mend; holds the worker's own trace."""


@dataclass(frozen=True, slots=True)
class LanesPlan:
    """What lanes are to be."""

    factory: SimulatorFactory
    slots: int
    horizon: int
    stream: dict[str, Any]
    """Keyword arguments of `ScenarioStream` beside scenarios and slots."""
    keep_final: KeepFinal = "truncated"
    lanes: int = 1
    workers: int = 1
    kind: Literal["threads", "processes"] = "threads"
    cores: tuple[int, ...] = ()
    """Workers stay on these, one after another in turn where there are as many workers as cores or more."""
    timeout: float = 600.0
    """Seconds that a worker may take to build a simulator, to play a chunk or to restore an episode."""


@dataclass(slots=True)
class Arrival:
    """A lane whose next observations are on the board, and what came of the chunk before them."""

    lane: int
    playing: bool = False
    """Some slot of the lane has an episode."""
    final_slots: list[int] = field(default_factory=list[int])
    """Rows of the board's `final` that hold the last observation of an episode."""
    final_instructions: list[str] = field(default_factory=list[str])
    """What those episodes were asked to do."""
    episodes: list[EpisodeResult] = field(default_factory=list[EpisodeResult])
    """Those that ended, in order of slot."""
    spans: list[Span] = field(default_factory=list[Span])
    """When its workers were busy with it."""


def divide(slots: int, lanes: int, workers: int) -> list[tuple[Part, ...]]:
    """The parts of each worker. Lanes, and the parts of a lane, have as many slots as each other, or one more.

    With as many workers as lanes or more, each works for one lane alone; with fewer, a worker plays several lanes in
    the order in which they are asked for. A worker for which no slot is left has no part.
    """
    parts: list[list[Part]] = [[] for _ in range(workers)]
    for lane, (first, stop) in enumerate(_cut(0, slots, lanes)):
        serving = list(range(lane, workers, lanes)) or [lane % workers]
        for worker, (start, end) in zip(serving, _cut(first, stop, len(serving)), strict=True):
            if end > start:
                parts[worker].append(Part(lane, start, end))
    return [tuple(part) for part in parts]


class Lanes:
    """The workers that play k lanes, behind one interface: ask a lane to play, and take lanes as they get ready.

    Args:
        plan: what is played, and where.
        chunk: actions per decision.

    Raises:
        TreadleError: A worker could not build its simulator, or did not in time.
    """

    def __init__(self, plan: LanesPlan, chunk: int) -> None:
        self.plan = plan
        self.scenarios: NDArray[np.object_] = np.full(plan.slots, None, np.object_)
        """[B] the `Scenario` that each slot plays, None where it idles."""
        self._playing_slots = np.zeros(plan.slots, np.bool_)
        self.started = False
        """Slots have episodes, begun or restored."""
        divided = [parts for parts in divide(plan.slots, plan.lanes, plan.workers) if parts]
        lanes: list[list[Part]] = [[] for _ in range(plan.lanes)]
        for part in sorted((part for parts in divided for part in parts), key=lambda part: part.first):
            lanes[part.lane].append(part)
        self.rows = [slice(parts[0].first, parts[-1].stop) for parts in lanes]
        """The slots of each lane, which are neighbours."""
        self.workers = len(divided)
        self._parts = divided
        self._reports: list[dict[int, tuple[int, Report]]] = [{} for _ in lanes]
        """For each lane, what was said by worker and part so far, by first slot."""
        self._asked: dict[tuple[int, int], float] = {}
        """When each (worker, part) that has not answered was asked."""
        self._arrived: list[int] = []
        self._broken = False
        self._handles: list[WorkerHandle] = []
        self._exit = ExitStack()
        self._select = self._exit.enter_context(selectors.DefaultSelector())
        try:
            self.spec, self.board = self._open(chunk)
        except BaseException:
            self._broken = True
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_GRACE if error is None else _GRACE_ON_ERROR)

    def __len__(self) -> int:
        return self.plan.lanes

    def playing(self, lane: int) -> Rows:
        """The slots of a lane that have an episode; a slice where all do, which reads the board without a copy."""
        rows = self.rows[lane]
        playing = self._playing_slots[rows]
        return rows if playing.all() else np.flatnonzero(playing) + rows.start

    def start(self) -> None:
        """Begin an episode in every slot of every lane; none may be playing."""
        self.started = True
        self._arrived = []
        self._reports = [{} for _ in self.rows]
        for lane in range(len(self)):
            self._ask(lane, START)

    def play(self, lane: int) -> None:
        """Play the actions that are on the board, in a lane that had arrived."""
        self._ask(lane, PLAY)

    def ready(self, most: int) -> list[Arrival]:
        """Wait until a lane is ready; at least one and at most `most` of those that are, the longest ready first.

        Raises:
            TreadleError: What a worker raised; SimulatorError where it died or took too long.
            WorkerError: It raised something else.
        """
        if self._arrived:
            self._receive(wait=False)
        while not self._arrived:
            self._receive(wait=True)
        lanes, self._arrived = self._arrived[:most], self._arrived[most:]
        return [self._take(lane) for lane in lanes]

    def state_dict(self) -> dict[str, Any]:
        """Where every slot and its stream stand, whatever lane it is in; no lane may be playing."""
        episodes: list[int] = [0] * self.plan.slots
        hosts: list[Any] = [None] * self.plan.slots
        for worker, parts in enumerate(self._parts):
            for index, part in enumerate(parts):
                self._send(worker, (SAVE, index, None))
                state = self._answer(worker)
                episodes[part.first : part.stop] = state["episodes"]
                hosts[part.first : part.stop] = state["host"]
        return {"episodes": episodes, "host": hosts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with any number of lanes; episodes under way are played again up to where they were."""
        self.started = any(episode is not None for episode in state["host"])
        for worker, parts in enumerate(self._parts):
            for index, part in enumerate(parts):
                piece = {name: values[part.first : part.stop] for name, values in state.items()}
                self._asked[worker, index] = time.monotonic()
                self._send(worker, (RESTORE, index, piece))
        while self._asked:
            self._receive(wait=True)

    def close(self, grace: float = _GRACE) -> None:
        """End every worker, and wait `grace` seconds until it has closed its simulator; may be called twice."""
        handles, self._handles = self._handles, []
        deadline = time.monotonic() + (0.0 if self._broken else grace)
        # All are asked before one is waited for, so that they close side by side.
        for handle in handles:
            handle.ask_to_end()
        for handle in handles:
            self._exit.callback(handle.stop, deadline)
        self._exit.close()

    def _open(self, chunk: int) -> tuple[SimulatorSpec, Board]:
        plan = self.plan
        memory = SharedBoard() if plan.kind == "processes" else None
        if memory is not None:
            self._exit.callback(memory.close)
        for worker, parts in enumerate(self._parts):
            worker_plan = WorkerPlan(
                name=f"simulate, worker {worker} of {len(self._parts)}",
                factory=plan.factory,
                parts=parts,
                slots=plan.slots,
                horizon=plan.horizon,
                keep_final=plan.keep_final,
                stream=plan.stream,
                cores=_share(plan.cores, worker, len(self._parts)),
            )
            handle = ThreadWorker(worker_plan) if memory is None else ProcessWorker(worker_plan, memory)
            self._handles.append(handle)
            self._select.register(handle.connection, selectors.EVENT_READ, worker)
        specs: list[SimulatorSpec] = [self._answer(worker) for worker in range(len(self._handles))]
        spec = specs[0]
        shape = BoardShape(plan.slots, chunk, spec)
        board = Board(shape) if memory is None else memory.map(shape)
        for handle in self._handles:
            if isinstance(handle, ThreadWorker):
                handle.board = board
            handle.connection.send(shape)
        return spec, board

    def _ask(self, lane: int, command: int) -> None:
        now = time.monotonic()
        for worker, parts in enumerate(self._parts):
            for index, part in enumerate(parts):
                if part.lane == lane:
                    self._asked[worker, index] = now
                    self._send(worker, (command, index, None))

    def _send(self, worker: int, message: tuple[int, int, Any]) -> None:
        try:
            self._handles[worker].connection.send(message)
        except ConnectionError:
            # It may have said why before it went.
            self._answer(worker)
            raise self._died(worker) from None

    def _receive(self, *, wait: bool) -> None:
        """Take in what workers have said; where `wait`, at least one of them, within the time that it has."""
        timeout = 0.0
        if wait:
            if not self._asked:
                raise RuntimeError("no lane is playing, so none will ever be ready")
            timeout = max(0.0, min(self._asked.values()) + self.plan.timeout - time.monotonic())
        events = self._select.select(timeout)
        for key, _ in events:
            self._note(key.data, self._read(key.data))
        if wait and not events:
            worker, index = min(self._asked, key=lambda asked: self._asked[asked])
            raise self._overdue(worker, index)

    def _note(self, worker: int, report: Report) -> None:
        del self._asked[worker, report.part]
        part = self._parts[worker][report.part]
        self._reports[part.lane][part.first] = worker, report
        if not any(self._parts[w][index].lane == part.lane for w, index in self._asked):
            self._arrived.append(part.lane)

    def _take(self, lane: int) -> Arrival:
        arrival = Arrival(lane)
        for _, (worker, report) in sorted(self._reports[lane].items()):
            arrival.playing |= report.playing
            arrival.final_slots += report.final_slots
            arrival.final_instructions += [self.scenarios[slot].instruction for slot in report.final_slots]
            arrival.episodes += report.episodes
            arrival.spans.append(Span("simulate", worker, (lane,), report.began, report.ended))
            for slot, scenario in report.begun.items():
                self.scenarios[slot] = scenario
                self._playing_slots[slot] = scenario is not None
        self._reports[lane] = {}
        return arrival

    def _answer(self, worker: int) -> Any:
        """What a worker says next, and nobody else."""
        if not self._handles[worker].connection.poll(self.plan.timeout):
            raise self._overdue(worker, None)
        return self._read(worker)

    def _read(self, worker: int) -> Any:
        try:
            said = self._handles[worker].connection.recv()
        except (EOFError, ConnectionError):
            raise self._died(worker) from None
        if not isinstance(said, Failure):
            return said
        self._broken = True
        if said.mendable is None:
            raise WorkerError(f"{said.message}\n\n{said.trace}")
        raise getattr(errors, said.mendable, SimulatorError)(said.message)

    def _died(self, worker: int) -> SimulatorError:
        self._broken = True
        handle = self._handles[worker]
        lanes = sorted({part.lane for part in handle.plan.parts})
        return SimulatorError(
            f"{handle.plan.name}: {handle.ending()} ({self._playing(handle.plan.parts)}; it serves lane"
            f"{'s' * (len(lanes) > 1)} {', '.join(map(str, lanes))}). What was saved is whole: mend the cause, "
            "and the same command goes on from the last checkpoint"
        )

    def _overdue(self, worker: int, index: int | None) -> SimulatorError:
        self._broken = True
        handle = self._handles[worker]
        handle.dump_stack()
        parts = handle.plan.parts if index is None else handle.plan.parts[index : index + 1]
        where = "building its simulator" if index is None else f"lane {parts[0].lane}, {self._playing(parts)}"
        return SimulatorError(
            f"{handle.plan.name}: no answer for {self.plan.timeout:g} s ({where}); where it stands is on stderr. "
            "Raise collection.timeout if the simulator may take that long; the same command goes on from the last "
            "checkpoint"
        )

    def _playing(self, parts: Sequence[Part], shown: int = 3) -> str:
        known: list[tuple[int, Scenario | None]] = [
            (slot, self.scenarios[slot]) for part in parts for slot in range(part.first, part.stop)
        ]
        named = [f"slot {slot}: {scenario.id}" for slot, scenario in known if scenario is not None]
        more = f" and {len(named) - shown} more" if len(named) > shown else ""
        return f"playing {', '.join(named[:shown]) or 'nothing yet'}{more}"


def check_dimensions(spec: SimulatorSpec, action_dim: int) -> None:
    """Raises ConfigError where a policy's actions are not the simulator's."""
    if spec.action_dim != action_dim:
        raise ConfigError(
            f"policy.checkpoint: it acts in {action_dim} dimensions, the simulator {spec.name!r} takes "
            f"{spec.action_dim}; choose a checkpoint that was made for it"
        )


def _cut(first: int, stop: int, count: int) -> list[tuple[int, int]]:
    edges = [first + (stop - first) * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def _share(cores: tuple[int, ...], worker: int, workers: int) -> tuple[int, ...]:
    """The cores of one worker: one in turn, or several where there are more cores than workers."""
    return cores[worker::workers] or cores[worker % len(cores) :][:1] if cores else ()
