"""The crew's side of a worker: it starts a thread or a process, talks to it, and ends it.

Both kinds have a connection, so the crew waits for all of them in the same way.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from treadle.environments.interpreter import Interpreter
from treadle.errors import SimulatorError
from treadle.workers.buffer import BufferShape, SharedBuffer, SharedFile
from treadle.workers.link import Link
from treadle.workers.messages import Enter, Session, WorkerPlan
from treadle.workers.worker import serve

GONE = object()
"""The message of a worker whose side is closed."""

_REAPING = 5.0
"""Seconds that the system has to end a process that was killed."""
_LAUNCH = Path(__file__).with_name("launch.py")


class ThreadConnection:
    """One end of a connection within this process: messages are handed over as they are, and an empty one in the pipe
    says that there is one, so that it is waited for like any other.
    """

    def __init__(self, pipe: Connection, sent: deque[Any], received: deque[Any]) -> None:
        self._pipe, self._sent, self._received = pipe, sent, received
        self.fileno, self.close = pipe.fileno, pipe.close

    @classmethod
    def pair(cls) -> "tuple[ThreadConnection, ThreadConnection]":
        """Both ends."""
        (here, there), (one, other) = Pipe(), (deque[Any](), deque[Any]())
        return cls(here, one, other), cls(there, other, one)

    def send(self, message: Any, /) -> None:
        """See `Connection.send`."""
        self._sent.append(message)
        self._pipe.send_bytes(b"")

    def recv(self) -> Any:
        """See `Connection.recv`."""
        self._pipe.recv_bytes()
        return self._received.popleft()


class WorkerHandle(ABC):
    """A worker that was started."""

    replaceable: bool
    """Whether it can be ended while it is busy."""

    def __init__(self, plan: WorkerPlan, connection: Link | ThreadConnection) -> None:
        self.plan = plan
        self.connection = connection
        self.listened: tuple[Any, ...] = (connection,)
        """What to wait for before `hear`: its messages, and its end."""
        self._waiting: list[Any] | None = []
        """Messages for after its hello: until then it does not read, and a full pipe would block."""

    def send(self, message: Any) -> None:
        """Send a message. A worker that is gone gets none; the wait for its answer finds out."""
        if self._waiting is None:
            self._send(message)
        else:
            self._waiting.append(message)

    def greeted(self) -> None:
        """Note that the worker has said hello, and send the messages that waited for it."""
        waiting, self._waiting = self._waiting or [], None
        for message in waiting:
            self._send(message)

    def enter(self, buffer: SharedBuffer, session: Session) -> None:
        """Let the worker map the buffer, and begin a session."""
        self.send(Enter(buffer.shape.slots, buffer.shape.chunk, session))

    def ask_to_end(self) -> None:
        """Let the worker close its simulators and end."""
        self._send(None)

    def hear(self) -> Any:
        """The next message of the worker, once one of those it listens to is ready."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            return GONE

    @abstractmethod
    def ending(self) -> str:
        """How the worker ended, after its connection broke; for an error."""

    @abstractmethod
    def dump_stack(self) -> None:
        """Write to stderr where the worker is."""

    @abstractmethod
    def stop(self, deadline: float) -> None:
        """Wait until a worker that was asked to end has ended; end it at `deadline` (`time.monotonic()`)."""

    def _send(self, message: Any) -> None:
        with suppress(ConnectionError):
            self.connection.send(message)


class ThreadWorker(WorkerHandle):
    """A worker in a thread of this process."""

    replaceable = False

    def __init__(self, plan: WorkerPlan) -> None:
        connection, theirs = ThreadConnection.pair()
        super().__init__(plan, connection)
        self._buffer: SharedBuffer | None = None
        work = (theirs, plan, self._attach)
        self._thread = threading.Thread(target=serve, args=work, name=plan.name, daemon=True)
        self._thread.start()

    def enter(self, buffer: SharedBuffer, session: Session) -> None:
        """See `WorkerHandle.enter`."""
        self._buffer = buffer
        super().enter(buffer, session)

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

    def _attach(self, shape: BufferShape) -> SharedBuffer:
        assert self._buffer is not None
        assert self._buffer.shape == shape
        return self._buffer


class ProcessWorker(WorkerHandle):
    """A worker in its own process, in the simulator's interpreter. It has a process group of its own, with whatever its
    simulator starts, which ends as a whole: when the worker ends, and when this process ends, however that is.

    Its libraries take as many threads as its simulator, unless environment variables here say otherwise.
    Raises SimulatorError if the interpreter cannot be started.
    """

    replaceable = True

    def __init__(self, plan: WorkerPlan, memory: SharedFile, timeout: float) -> None:
        connection, theirs = Pipe()
        super().__init__(plan, Link(connection, timeout))
        self._fault = ""
        """What it did wrong that is not seen from how it ended."""
        # Closed with this process: then the system itself kills the group.
        watched, self._lifeline = os.pipe()
        threads, files = plan.factory.options.get("threads"), (theirs.fileno(), memory.number, watched)
        chosen = plan.factory.interpreter or Interpreter(sys.executable)
        limits = {} if threads is None else thread_limits(threads)
        seen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, plan.gpus))} if plan.gpus else {}
        try:
            self._process = subprocess.Popen(
                [chosen.python, "-P", str(_LAUNCH), "treadle.workers.worker", *map(str, files)],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                env={
                    **limits,
                    **os.environ,
                    **seen,
                    **chosen.variables,
                    "PYTHONPATH": os.pathsep.join(_search_path(chosen)),
                },
                # Ctrl-C is for this process alone, which then ends its workers in order.
                start_new_session=True,
            )
        except OSError as error:
            self.connection.close()
            os.close(self._lifeline)
            raise SimulatorError(f"cannot start {chosen.python}: {error.strerror}; check simulator.python") from error
        finally:
            theirs.close()
            os.close(watched)
        # A process that a simulator has forked holds its connection too, so the end of the worker is watched itself.
        self._end = os.pidfd_open(self._process.pid) if sys.platform == "linux" else -1
        if self._end >= 0:
            self.listened = (self.connection, self._end)
        self._send(plan)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def hear(self) -> Any:
        """See `WorkerHandle.hear`. One that does not end its message, or does not read, is as good as gone."""
        assert isinstance(self.connection, Link)
        if not self.connection.ready():
            return GONE
        try:
            return super().hear()
        except TimeoutError as error:
            self._give_up(error)
            return GONE

    def ending(self) -> str:
        """See `WorkerHandle.ending`."""
        if self._fault:
            return self._fault
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
        if self._end < 0 and self._lifeline < 0:
            return
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            self._kill()
            with suppress(subprocess.TimeoutExpired):
                # The system may still be busy with it, as with a disk that does not answer.
                self._process.wait(_REAPING)
            self.connection.close()
            for number in (self._lifeline, self._end):
                if number >= 0:
                    os.close(number)
            self._lifeline = self._end = -1

    def _send(self, message: Any) -> None:
        try:
            super()._send(message)
        except TimeoutError as error:
            self._give_up(error)

    def _give_up(self, error: TimeoutError) -> None:
        self.dump_stack()
        self._fault = f"{error}, and was killed; where it stood is on stderr"
        self._kill()

    def _kill(self) -> None:
        """End the worker, and all that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables that limit the threads of torch, BLAS and Mesa's software renderer; without them, each
    takes every core. With 0 threads of its own, Mesa draws in the thread that asks.
    """
    return {"OMP_NUM_THREADS": str(threads), "LP_NUM_THREADS": str(threads if threads > 1 else 0)}


def _search_path(interpreter: Interpreter) -> list[str]:
    """Where its processes find modules: as here, a user's own simulator among them. Another interpreter has a standard
    library and installed packages of its own, so there it is the user's own folders alone.
    """
    folders = [folder for folder in sys.path if folder]
    if interpreter.is_this:
        return folders
    installed = [Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))]
    return [
        folder
        for folder in folders
        if not {"site-packages", "dist-packages"} & set(Path(folder).parts)
        and not any(Path(folder) == path or path in Path(folder).parents for path in installed)
        and not folder.endswith(".zip")
    ]
