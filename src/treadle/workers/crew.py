"""The crew: every worker that plays simulators, behind one supervisor with deadlines, restarts and replay.

It is opened once; training, evaluation, films and demonstrations are sessions that it plays one after another. A worker
that fails, dies or hangs is replaced, and the new worker repeats the actions that its parts had played.
"""

import logging
import selectors
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from treadle.data.scenario import Scenario, Split
from treadle.errors import ConfigError, did_you_mean
from treadle.simulators.factory import SimulatorFactory
from treadle.workers import queries
from treadle.workers.buffer import BufferShape, SharedBuffer, SharedFile, buffer_bytes
from treadle.workers.episode_log import EpisodeLog
from treadle.workers.failure import Failure
from treadle.workers.handles import GONE, ProcessWorker, ThreadWorker, WorkerHandle
from treadle.workers.messages import Answer, Call, Hello, Part, Play, Report, Restore, Session, WorkerPlan
from treadle.workers.partition import partition, share_devices

if TYPE_CHECKING:
    # What a simulator's own Python imports of this lacks the packages of settings.
    from treadle.config.schema import EvaluationConfig

ATTEMPTS = 3
"""The run ends after so many failures of a part with nothing played in between."""

_GRACE, _GRACE_ON_ERROR = 5.0, 1.0
"""Seconds that workers have to close their simulators."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CrewPlan:
    """The description of a crew."""

    factory: SimulatorFactory
    slots: int
    lanes: int = 1
    workers: int = 1
    kind: Literal["threads", "processes"] = "threads"
    cores: tuple[int, ...] = ()
    """Workers stay on these cores. If there are fewer cores than workers, workers share them in turn."""
    gpus: tuple[int, ...] = ()
    """Worker processes see these graphics cards alone, divided likewise; none sees all."""
    timeout: float = 600.0
    """Seconds that a worker may take to build a simulator, to play a chunk or to restore an episode."""


class Crew:
    """Workers, each with simulators for its parts of lanes.

    Raises:
        TreadleError: A worker could not build its simulator, or did not in time.
    """

    def __init__(self, plan: CrewPlan) -> None:
        self.plan = plan
        self.session: Session | None = None
        self.restarts = 0
        """How many workers were replaced so far."""
        self.parts = [parts for parts in partition(plan.slots, plan.lanes, plan.workers) if parts]
        """The parts of each worker."""
        self.workers = len(self.parts)
        lanes = [[part for parts in self.parts for part in parts if part.lane == lane] for lane in range(plan.lanes)]
        self.rows = [slice(min(p.first for p in parts), max(p.stop for p in parts)) for parts in lanes]
        """The slots of each lane, which are neighbours."""
        self._asked: dict[int, tuple[int, Play | Restore | Call]] = {}
        """Worker and message of every unanswered request, by number, in the order of the requests."""
        self._number = 0
        self._heard = [0.0] * self.workers
        """When each busy worker last said something, or was asked first."""
        self._lost: set[tuple[int, int]] = set()
        """Parts of replaced workers, by worker and index, that must be restored before they play on."""
        self._failures = Counter[tuple[int, int]]()
        self._log: EpisodeLog | None = None
        self._buffer: SharedBuffer | None = None
        self._broken = False
        self._handles: list[WorkerHandle] = []
        self._exit = ExitStack()
        self._inbox = selectors.DefaultSelector()
        """It listens to every worker."""
        self._exit.callback(self._inbox.close)
        self._memory = SharedFile() if plan.kind == "processes" else None
        if self._memory is not None:
            self._exit.callback(self._memory.close)
        try:
            hello = self._open()
        except BaseException:
            self._broken = True
            self.close()
            raise
        self.spec, self.suites = hello.spec, hello.suites
        self.teaches, self.renders_scenes = hello.teaches, hello.renders_scenes
        for caution in self.spec.cautions:
            _log.warning("%s", caution)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(_GRACE if error is None else _GRACE_ON_ERROR)

    def enter(self, session: Session, chunk: int, log: EpisodeLog) -> SharedBuffer:
        """Begin a session in which every slot idles, once every earlier request is answered. The session notes in `log`
        what is played, and a fresh worker goes on from there.
        """
        while self._asked:
            self.receive(wait=True)
        shape = BufferShape(self.plan.slots, chunk, self.spec)
        if self._buffer is None or self._buffer.shape != shape:
            if self._memory is not None:
                self._memory.resize(buffer_bytes(shape))
            self._buffer = SharedBuffer(shape, self._memory)
        self.session, self._log = session, log
        self._lost.clear()
        for handle in self._handles:
            handle.enter(self._buffer, session)
        return self._buffer

    def play(self, worker: int, message: Play) -> None:
        """Ask a worker to play one of its parts; `receive` gives its report."""
        self._ask(worker, message)

    def restore(self, worker: int, index: int) -> None:
        """Ask a worker to bring a part to its state in the log; `receive` gives its report."""
        self._ask(worker, self._restoring(worker, index))

    def receive(self, *, wait: bool) -> list[tuple[int, Report]]:
        """Reports that have come in, by worker. With `wait`, it waits for a message until the deadline of a worker.

        Raises:
            TreadleError: A worker failed again and again: its own error, or SimulatorError if it died or took too
                long.
            WorkerError: It raised something else.
        """
        return [(worker, said) for worker, said in self._receive(wait=wait) if isinstance(said, Report)]

    def call(self, function: str, *arguments: Any, worker: int = 0) -> Any:
        """Call `package.module:function` with a simulator and the arguments, in the worker; returns the result.

        It waits for earlier requests. Raises as `receive`.
        """
        number = self._ask(worker, Call(function, arguments))
        while True:
            for _, said in self._receive(wait=True):
                if isinstance(said, Answer) and number not in self._asked:
                    if isinstance(said.value, Failure):
                        said.value.throw()
                    return said.value

    def count(self, suite: str, split: Split) -> int:
        """How many scenarios a suite has. Raises ConfigError for an unknown suite."""
        return self.call(queries.COUNT, suite, split)

    def scenarios(self, suite: str, split: Split, first: int, stop: int) -> list[Scenario]:
        """The scenarios `first` to `stop` of a suite. Raises ConfigError for an unknown suite."""
        return self.call(queries.SCENARIOS, suite, split, first, stop)

    def close(self, grace: float = _GRACE) -> None:
        """End every worker, and wait `grace` seconds until it has closed its simulator; may be called twice."""
        handles, self._handles = self._handles, []
        deadline = time.monotonic() + (0.0 if self._broken else grace)
        # Ask all of them before waiting for one, so that they close side by side.
        for handle in handles:
            handle.ask_to_end()
        for handle in handles:
            self._exit.callback(handle.stop, deadline)
        self._exit.close()

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [handle.pid for handle in self._handles if isinstance(handle, ProcessWorker)]

    def _open(self) -> Hello:
        """Start every worker, and wait until each has built its simulators."""
        for worker in range(self.workers):
            self._handles.append(self._start(worker))
        greeted: dict[int, Hello] = {}
        deadline = time.monotonic() + self.plan.timeout
        while len(greeted) < self.workers:
            heard = self._hear(max(0.0, deadline - time.monotonic()))
            if not heard and time.monotonic() >= deadline:
                self._overdue(next(worker for worker in range(self.workers) if worker not in greeted)).throw()
            for worker, said in self._present(heard):
                if isinstance(said, Failure):
                    said.throw()
                greeted[worker] = said
        return greeted[0]

    def _start(self, worker: int) -> WorkerHandle:
        plan = self.plan
        name = f"simulate, worker {worker} of {self.workers}"
        cores = share_devices(plan.cores, worker, self.workers)
        gpus = share_devices(plan.gpus, worker, self.workers)
        worker_plan = WorkerPlan(name, plan.factory, self.parts[worker], cores, gpus)
        handle = (
            ThreadWorker(worker_plan)
            if self._memory is None
            else ProcessWorker(worker_plan, self._memory, plan.timeout)
        )
        for source in handle.listened:
            self._inbox.register(source, selectors.EVENT_READ, handle)
        return handle

    def _ask(self, worker: int, message: Play | Restore | Call) -> int:
        self._number += 1
        message = replace(message, number=self._number)
        if not any(busy == worker for busy, _ in self._asked.values()):
            self._heard[worker] = time.monotonic()
        self._asked[self._number] = worker, message
        self._send(worker, message)
        return self._number

    def _send(self, worker: int, message: Play | Restore | Call) -> None:
        """Send a message; a lost part is restored first."""
        if (worker, message.part) in self._lost:
            self._lost.discard((worker, message.part))
            self._handles[worker].send(self._restoring(worker, message.part))
            # The restored part already has the scenarios of this message.
            message = replace(message, upcoming={}) if isinstance(message, Play) else message
        self._handles[worker].send(message)

    def _restoring(self, worker: int, index: int) -> Restore:
        log, part = self._log, self.parts[worker][index]
        assert log is not None
        return Restore(index, log.episodes(part.first, part.stop), log.entries(part.first, part.stop))

    def _receive(self, *, wait: bool) -> list[tuple[int, Report | Answer]]:
        """Answers that have come in, by worker; replaces workers that failed."""
        heard: list[tuple[WorkerHandle, Any]]
        if not wait:
            heard = self._hear(0.0)
        else:
            if not self._asked:
                raise RuntimeError("no worker was asked anything, so none will ever answer")
            slowest = min({worker for worker, _ in self._asked.values()}, key=lambda worker: self._heard[worker])
            deadline = self._heard[slowest] + self.plan.timeout
            heard = self._hear(max(0.0, deadline - time.monotonic()))
            if not heard and time.monotonic() >= deadline:
                self._replace(slowest, self._overdue(slowest))
        answers: list[tuple[int, Report | Answer]] = []
        for worker, said in self._present(heard):
            self._heard[worker] = time.monotonic()
            match said:
                case Failure():
                    self._replace(worker, said)
                case Report() if said.number in self._asked:
                    del self._asked[said.number]
                    del self._failures[worker, said.part]
                    answers.append((worker, said))
                case Answer():
                    del self._asked[said.number]
                    del self._failures[worker, Call.part]
                    answers.append((worker, said))
                case _:
                    # Hello of a fresh worker, or the report of a restored part, whose request is still to be answered.
                    pass
        return answers

    def _hear(self, timeout: float) -> list[tuple[WorkerHandle, Any]]:
        """Messages since the last call, one a worker. If there are none, it waits up to `timeout` seconds for one."""
        ready = dict.fromkeys(key.data for key, _ in self._inbox.select(timeout))
        return [(handle, handle.hear()) for handle in ready]

    def _present(self, heard: list[tuple[WorkerHandle, Any]]) -> Iterator[tuple[int, Any]]:
        """Messages by worker; the end of a worker becomes a failure. It goes one by one: once a worker was replaced for
        one message, its later messages do not count.
        """
        for handle, said in heard:
            if handle in self._handles:
                if isinstance(said, Hello):
                    handle.greeted()
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
        message = next((message for busy, message in self._asked.values() if busy == worker), None)
        where = "building its simulator"
        if isinstance(message, Call):
            where = f"calling {message.function}"
        elif message is not None:
            part = self.parts[worker][message.part]
            where = f"lane {part.lane}, {self._playing([part])}"
        return Failure(
            f"{handle.plan.name}: no answer for {self.plan.timeout:g} s ({where}); where it stands is on stderr. Raise "
            "collection.timeout if the simulator may take that long",
            final=not handle.replaceable,
        )

    def _replace(self, worker: int, failure: Failure) -> None:
        """Start a worker anew after a failure; its parts go on from where they were.

        Raises the failure itself if it is final, or has come again and again.
        """
        busy = [message for asked, message in self._asked.values() if asked == worker]
        # A worker handles requests in order, so it failed in the first one.
        suspects = [message.part for message in busy[:1]] or list(range(len(self.parts[worker])))
        for index in suspects:
            self._failures[worker, index] += 1
        attempts = max(self._failures[worker, index] for index in suspects)
        if failure.final or attempts >= ATTEMPTS:
            self._broken = True
            often = f" ({attempts} times in a row)" if attempts > 1 else ""
            failure.throw(f"{often}. What was saved is whole: the same command goes on from the last checkpoint")
        if self.session is not None and self.session.expert is not None:
            self._broken = True
            failure.throw(". Its scripted expert is lost with it; start over")
        self.restarts += 1
        _log.warning("%s. Its slots restart with their scenarios", failure.message)
        for source in self._handles[worker].listened:
            self._inbox.unregister(source)
        self._handles[worker].stop(time.monotonic())
        self._handles[worker] = handle = self._start(worker)
        self._heard[worker] = time.monotonic()
        if self._buffer is not None and self.session is not None:
            handle.enter(self._buffer, self.session)
            self._lost |= {(worker, index) for index in range(len(self.parts[worker]))}
        for message in busy:
            self._send(worker, message)

    def _playing(self, parts: Sequence[Part], shown: int = 3) -> str:
        """The scenarios that are played, or were about to begin when the worker failed, for an error."""
        named: list[str] = []
        slots = [slot for part in parts for slot in range(part.first, part.stop)]
        if self._buffer is not None and self._log is not None:
            for slot in slots:
                index, known = int(self._buffer.scenario_index[slot]), self._log.scenarios[slot]
                if index >= 0:
                    name = known.id if known is not None and known.index == index else f"scenario {index}"
                    named.append(f"slot {slot}: {name}")
        more = f" and {len(named) - shown} more" if len(named) > shown else ""
        return f"playing {', '.join(named[:shown]) or 'nothing yet'}{more}"


def check_suites(crew: Crew, evaluation: "EvaluationConfig") -> None:
    """Raises ConfigError for suites of an evaluation that the simulator does not have."""
    for key, named in (("suites", evaluation.suites), ("horizons", evaluation.horizons)):
        for suite in named:
            require_suite(crew, f"evaluation.{key}", suite)


def require_suite(crew: Crew, key: str, suite: str) -> None:
    """Raises ConfigError, which names `key`, for a suite that the simulator does not have."""
    if suite not in crew.suites:
        raise ConfigError(
            f"{key}: {crew.spec.name} has no suite {suite!r}{did_you_mean(suite, crew.suites)}; choose from "
            f"{', '.join(crew.suites)}"
        )


def check_dimensions(crew: Crew, action_dim: int) -> None:
    """Raises ConfigError if policy and simulator differ in the dimensions of actions."""
    if crew.spec.action_dim != action_dim:
        raise ConfigError(
            f"policy.checkpoint: it acts in {action_dim} dimensions, the simulator {crew.spec.name!r} takes "
            f"{crew.spec.action_dim}; choose a checkpoint that was made for it"
        )
