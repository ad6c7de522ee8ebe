"""Lanes: groups of slots that advance together, each on its own, while the policy thinks about another.

Shapes: B slots of all lanes.
"""

import logging
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from treadle.data.span import Span
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError
from treadle.rollout.board import Board, BoardShape, board_bytes
from treadle.rollout.division import Part, divide, share_cores
from treadle.rollout.inbox import GONE, ProcessInbox, ThreadInbox
from treadle.rollout.journal import Journal
from treadle.rollout.worker import PLAY, RESTORE, START, Report, WorkerPlan
from treadle.rollout.worker_handle import ProcessWorker, ThreadWorker, WorkerHandle
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import KeepFinal
from treadle.simulators.process import Failure, SharedFile
from treadle.simulators.protocol import SimulatorSpec

Rows = slice | NDArray[np.intp]
"""Slots of a board: neighbours, or any."""

ATTEMPTS = 3
"""Failures of a part, with nothing played in between, after which the run ends."""

_GRACE, _GRACE_ON_ERROR = 5.0, 1.0
"""Seconds that workers have to close their simulators."""

_log = logging.getLogger(__name__)


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


class Lanes:
    """The workers that play k lanes, behind one interface: ask a lane to play, and take lanes as they get ready.

    A worker that fails, dies or hangs is replaced: its slots restart with their scenarios, play again what they had
    played, and go on.

    Args:
        plan: what is played, and where.
        chunk: actions per decision.

    Raises:
        TreadleError: A worker could not build its simulator, or did not in time.
    """

    def __init__(self, plan: LanesPlan, chunk: int) -> None:
        self.plan = plan
        self.started = False
        """Slots have episodes, begun or restored."""
        self.restarts = 0
        """Workers that were replaced so far."""
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
        self._asked: dict[tuple[int, int], int] = {}
        """The command that each (worker, part) has not answered yet, in the order in which they were asked."""
        self._heard = [0.0] * self.workers
        """When each worker, if it was asked anything, last said something or was asked first."""
        self._lost: set[tuple[int, int]] = set()
        """Parts whose worker was replaced, and that have to be restored before they play on."""
        self._failures = Counter[tuple[int, int]]()
        self._arrived: list[int] = []
        self._broken = False
        self._handles: list[WorkerHandle] = []
        self._exit = ExitStack()
        self._inbox: ThreadInbox[WorkerHandle] | ProcessInbox[WorkerHandle]
        self._inbox = ThreadInbox() if plan.kind == "threads" else ProcessInbox()
        self._exit.callback(self._inbox.close)
        try:
            self.spec, self.board = self._open(chunk)
        except BaseException:
            self._broken = True
            self.close()
            raise
        self._journal = Journal(plan.slots, plan.horizon, self.spec.action_dim)

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
        playing = self._journal.playing[rows]
        return rows if playing.all() else np.flatnonzero(playing) + rows.start

    @property
    def scenarios(self) -> NDArray[np.object_]:
        """[B] the `Scenario` that each slot plays, None where it idles."""
        return self._journal.scenarios

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
            TreadleError: A worker failed again and again: what it raised, or SimulatorError where it died or took too
                long.
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
        return self._journal.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with any number of lanes; episodes under way are played again up to where they were."""
        self.started = any(episode is not None for episode in state["host"])
        self._journal.load_state_dict(state)
        for lane in range(len(self)):
            self._ask(lane, RESTORE)
        while self._asked:
            self._receive(wait=True)

    def close(self, grace: float = _GRACE) -> None:
        """End every worker, and wait `grace` seconds until it has closed its simulator; may be called twice."""
        handles, self._handles = self._handles, []
        deadline = time.monotonic() + (0.0 if self._broken else grace)
        # All are asked before one is waited for, so that they close side by side.
        for handle in handles:
            handle.send(None)
        for handle in handles:
            self._exit.callback(handle.stop, deadline)
        self._exit.close()

    def _open(self, chunk: int) -> tuple[SimulatorSpec, Board]:
        plan = self.plan
        self._memory = SharedFile() if plan.kind == "processes" else None
        if self._memory is not None:
            self._exit.callback(self._memory.close)
        for worker in range(self.workers):
            self._handles.append(self._start(worker))
        specs: dict[int, SimulatorSpec] = {}
        deadline = time.monotonic() + plan.timeout
        while len(specs) < self.workers:
            heard = self._inbox.wait(max(0.0, deadline - time.monotonic()))
            if not heard and time.monotonic() >= deadline:
                self._overdue(next(worker for worker in range(self.workers) if worker not in specs)).throw()
            for worker, said in self._present(heard):
                if isinstance(said, Failure):
                    said.throw()
                specs[worker] = said
        shape = BoardShape(plan.slots, chunk, specs[0])
        if self._memory is not None:
            self._memory.resize(board_bytes(shape))
        board = Board(shape, self._memory)
        for handle in self._handles:
            handle.open(board)
        return specs[0], board

    def _start(self, worker: int) -> WorkerHandle:
        plan = self.plan
        worker_plan = WorkerPlan(
            name=f"simulate, worker {worker} of {self.workers}",
            factory=plan.factory,
            parts=self._parts[worker],
            slots=plan.slots,
            horizon=plan.horizon,
            keep_final=plan.keep_final,
            stream=plan.stream,
            cores=share_cores(plan.cores, worker, self.workers),
        )
        if isinstance(self._inbox, ThreadInbox):
            return ThreadWorker(worker_plan, self._inbox)
        assert self._memory is not None
        return ProcessWorker(worker_plan, self._memory, self._inbox)

    def _ask(self, lane: int, command: int) -> None:
        for worker, parts in enumerate(self._parts):
            for index, part in enumerate(parts):
                if part.lane == lane:
                    if not any(busy == worker for busy, _ in self._asked):
                        self._heard[worker] = time.monotonic()
                    self._asked[worker, index] = command
                    self._send(worker, index, command)

    def _send(self, worker: int, index: int, command: int) -> None:
        part, handle = self._parts[worker][index], self._handles[worker]
        lost = (worker, index) in self._lost
        self._lost.discard((worker, index))
        if lost or command == RESTORE:
            handle.send((RESTORE, index, self._journal.state_dict(part.first, part.stop)))
        if command != RESTORE:
            handle.send((command, index, None))

    def _receive(self, *, wait: bool) -> None:
        """Take in what workers have said; where `wait`, at least one of them, within the time that it has."""
        if not wait:
            heard = self._inbox.wait(0.0)
        else:
            if not self._asked:
                raise RuntimeError("no lane is playing, so none will ever be ready")
            slowest = min({worker for worker, _ in self._asked}, key=lambda worker: self._heard[worker])
            deadline = self._heard[slowest] + self.plan.timeout
            heard = self._inbox.wait(max(0.0, deadline - time.monotonic()))
            if not heard and time.monotonic() >= deadline:
                self._replace(slowest, self._overdue(slowest))
        for worker, said in self._present(heard):
            self._heard[worker] = time.monotonic()
            if isinstance(said, Failure):
                self._replace(worker, said)
            elif isinstance(said, Report):
                self._note(worker, said)

    def _note(self, worker: int, report: Report) -> None:
        if self._asked[worker, report.part] != report.command:
            # It was restored, and goes on with what it was asked.
            return
        del self._asked[worker, report.part]
        del self._failures[worker, report.part]
        part = self._parts[worker][report.part]
        self._journal.note(self.board, part.first, part.stop, report.begun)
        self._reports[part.lane][part.first] = worker, report
        if not any(self._parts[w][index].lane == part.lane for w, index in self._asked):
            self._arrived.append(part.lane)

    def _take(self, lane: int) -> Arrival:
        arrival = Arrival(lane)
        for _, (worker, report) in sorted(self._reports[lane].items()):
            arrival.playing |= report.playing
            arrival.final_slots += report.final_slots
            arrival.final_instructions += report.final_instructions
            arrival.episodes += report.episodes
            arrival.spans.append(Span("simulate", worker, (lane,), report.began, report.ended))
        self._reports[lane] = {}
        return arrival

    def _present(self, heard: list[tuple[WorkerHandle, Any]]) -> Generator[tuple[int, Any], None, None]:
        """What was heard, by worker, and how those ended that did. Looks one by one, for what a worker said last does
        not count once it was replaced for what it said before.
        """
        for handle, said in heard:
            if handle in self._handles:
                yield self._handles.index(handle), self._ended(handle) if said is GONE else said

    def _ended(self, handle: WorkerHandle) -> Failure:
        lanes = sorted({part.lane for part in handle.plan.parts})
        return Failure(
            f"{handle.plan.name}: {handle.ending()} ({self._playing(handle.plan.parts)}; it serves lane"
            f"{'s' * (len(lanes) > 1)} {', '.join(map(str, lanes))})"
        )

    def _overdue(self, worker: int) -> Failure:
        handle = self._handles[worker]
        handle.dump_stack()
        parts = [self._parts[worker][index] for busy, index in self._asked if busy == worker][:1]
        where = f"lane {parts[0].lane}, {self._playing(parts)}" if parts else "building its simulator"
        return Failure(
            f"{handle.plan.name}: no answer for {self.plan.timeout:g} s ({where}); where it stands is on stderr. Raise "
            "collection.timeout if the simulator may take that long",
            final=not handle.replaceable,
        )

    def _replace(self, worker: int, failure: Failure) -> None:
        """Start a worker anew after a failure, unless that was no use; its parts go on from where the journal has them.

        Raises what the failure was, where it is final or has come again and again.
        """
        busy = [index for asked, index in self._asked if asked == worker]
        # Parts are served in the order in which they were asked for: it failed in the first.
        suspects = busy[:1] or list(range(len(self._parts[worker])))
        for index in suspects:
            self._failures[worker, index] += 1
        attempts = max(self._failures[worker, index] for index in suspects)
        if failure.final or attempts >= ATTEMPTS:
            self._broken = True
            often = f" ({attempts} times in a row)" if attempts > 1 else ""
            failure.throw(f"{often}. What was saved is whole: the same command goes on from the last checkpoint")
        self.restarts += 1
        _log.warning("%s. Its slots restart with their scenarios", failure.message)
        old = self._handles[worker]
        old.stop(time.monotonic())
        self._handles[worker] = self._start(worker)
        self._handles[worker].open(self.board)
        self._heard[worker] = time.monotonic()
        self._lost |= {(worker, index) for index in range(len(self._parts[worker]))}
        for index in busy:
            self._send(worker, index, self._asked[worker, index])

    def _playing(self, parts: Sequence[Part], shown: int = 3) -> str:
        """What is played, or was about to begin when its worker failed."""
        named: list[str] = []
        for slot in (slot for part in parts for slot in range(part.first, part.stop) if self.started):
            index, known = int(self.board.scenario_index[slot]), self._journal.scenarios[slot]
            if index >= 0:
                name = known.id if known is not None and known.index == index else f"scenario {index}"
                named.append(f"slot {slot}: {name}")
        more = f" and {len(named) - shown} more" if len(named) > shown else ""
        return f"playing {', '.join(named[:shown]) or 'nothing yet'}{more}"


def check_dimensions(spec: SimulatorSpec, action_dim: int) -> None:
    """Raises ConfigError where a policy's actions are not the simulator's."""
    if spec.action_dim != action_dim:
        raise ConfigError(
            f"policy.checkpoint: it acts in {action_dim} dimensions, the simulator {spec.name!r} takes "
            f"{spec.action_dim}; choose a checkpoint that was made for it"
        )
