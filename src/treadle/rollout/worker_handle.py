"""The other side of a worker: starting it, in a thread or in a process, and ending it."""

import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from treadle.rollout.board import Board, BoardShape, board_bytes
from treadle.rollout.worker import WorkerPlan, serve


class SharedBoard:
    """Memory for a board that worker processes inherit. It has no name, so nothing is left behind however they end."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.file = os.memfd_create("treadle")
        else:
            with tempfile.TemporaryFile() as temporary:
                self.file = os.dup(temporary.fileno())

    def map(self, shape: BoardShape) -> Board:
        """Give the memory its size, once the shape is known."""
        os.ftruncate(self.file, board_bytes(shape))
        return Board(shape, self.file)

    def close(self) -> None:
        """Close the file; what is mapped stays until its arrays are gone."""
        os.close(self.file)


class WorkerHandle(ABC):
    """A worker that was started."""

    connection: Connection

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan

    @abstractmethod
    def ending(self) -> str:
        """How the worker ended, for a worker whose connection broke."""

    @abstractmethod
    def dump_stack(self) -> None:
        """Write to stderr where the worker is."""

    @abstractmethod
    def stop(self, deadline: float) -> None:
        """Wait until a worker that was asked to end has, or end it at `deadline`, of `time.monotonic()`."""

    def ask_to_end(self) -> None:
        """Send the message after which a worker closes its simulator and ends."""
        try:
            self.connection.send(None)
        except (BrokenPipeError, ConnectionError):
            return


class ThreadWorker(WorkerHandle):
    """A worker in a thread of this process; `board` must be set before its shape is sent."""

    def __init__(self, plan: WorkerPlan) -> None:
        super().__init__(plan)
        self.board: Board | None = None
        self.connection, theirs = Pipe()
        self._thread = threading.Thread(target=serve, args=(theirs, plan, self._attach), name=plan.name, daemon=True)
        self._thread.start()

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
        self.connection.close()

    def _attach(self, shape: BoardShape) -> Board:
        assert self.board is not None
        assert self.board.shape == shape
        return self.board


class ProcessWorker(WorkerHandle):
    """A worker in a process of its own, which ends with this one, however that ends."""

    def __init__(self, plan: WorkerPlan, memory: SharedBoard) -> None:
        super().__init__(plan)
        self.connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "treadle.rollout.worker_process", str(theirs.fileno()), str(memory.file)],
                pass_fds=(theirs.fileno(), memory.file),
                stdin=subprocess.DEVNULL,
                # The same modules are found as here, a user's own simulator among them.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                # Ctrl-C is for this process alone, which then ends its workers in order.
                start_new_session=True,
            )
        finally:
            theirs.close()
        self.connection.send(plan)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ending(self) -> str:
        """See `WorkerHandle.ending`."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code >= 0:
            return f"its process ended with code {code}"
        hint = ", which is how the system ends what takes too much memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by signal {signal.Signals(-code).name}{hint}"

    def dump_stack(self) -> None:
        """See `WorkerHandle.dump_stack`."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)

    def stop(self, deadline: float) -> None:
        """See `WorkerHandle.stop`."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self.connection.close()
