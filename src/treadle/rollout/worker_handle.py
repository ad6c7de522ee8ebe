"""The other side of a worker: starting it, in a thread or in a process, and ending it."""

import faulthandler
import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from treadle.rollout.board import Board, BoardShape
from treadle.rollout.inbox import ProcessInbox, ThreadInbox
from treadle.rollout.worker import WorkerPlan, serve
from treadle.simulators.process import SharedFile


class WorkerHandle(ABC):
    """A worker that was started."""

    replaceable: bool
    """Whether it can be ended while it is busy."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan

    @abstractmethod
    def send(self, message: Any) -> None:
        """Send a message; a worker that is gone gets none, and that it is gone shows where its answer is awaited."""

    def open(self, board: Board) -> None:
        """Let the worker map the board."""
        self.send(board.shape)

    @abstractmethod
    def ending(self) -> str:
        """How the worker ended, for a worker whose connection broke."""

    @abstractmethod
    def dump_stack(self) -> None:
        """Write to stderr where the worker is."""

    @abstractmethod
    def stop(self, deadline: float) -> None:
        """Wait until a worker that was asked to end has, or end it at `deadline`, of `time.monotonic()`."""


class ThreadWorker(WorkerHandle):
    """A worker in a thread of this process."""

    replaceable = False

    def __init__(self, plan: WorkerPlan, inbox: ThreadInbox[WorkerHandle]) -> None:
        super().__init__(plan)
        self._board: Board | None = None
        self._channel = inbox.channel(self)
        work = (self._channel, plan, self._attach)
        self._thread = threading.Thread(target=serve, args=work, name=plan.name, daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        """See `WorkerHandle.send`."""
        self._channel.ask(message)

    def open(self, board: Board) -> None:
        """See `WorkerHandle.open`."""
        self._board = board
        super().open(board)

    def ending(self) -> str:
        """See `WorkerHandle.ending`."""
        return "its thread ended"

    def dump_stack(self) -> None:
        """See `WorkerHandle.dump_stack`."""
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)

    def stop(self, deadline: float) -> None:
        """A thread cannot be ended from outside; one that hangs is left to the end of the process."""
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _attach(self, shape: BoardShape) -> Board:
        assert self._board is not None
        assert self._board.shape == shape
        return self._board


class ProcessWorker(WorkerHandle):
    """A worker in a process of its own, in the simulator's interpreter."""

    replaceable = True

    def __init__(self, plan: WorkerPlan, memory: SharedFile, inbox: ProcessInbox[WorkerHandle]) -> None:
        super().__init__(plan)
        self._process = plan.factory.start("treadle.rollout.worker_process", memory)
        self._inbox = inbox
        self._inbox.add(self, self._process.connection)
        self.send(plan)

    def send(self, message: Any) -> None:
        """See `WorkerHandle.send`."""
        with suppress(ConnectionError):
            self._process.connection.send(message)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ending(self) -> str:
        """See `WorkerHandle.ending`."""
        return self._process.ending()

    def dump_stack(self) -> None:
        """See `WorkerHandle.dump_stack`."""
        self._process.dump_stack()

    def stop(self, deadline: float) -> None:
        """See `WorkerHandle.stop`."""
        if not self._process.connection.closed:
            self._inbox.remove(self._process.connection)
        self._process.stop(deadline)
