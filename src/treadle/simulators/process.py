"""A worker process of a simulator, in this Python or in another. Imports the standard library alone."""

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import NoReturn

from treadle import errors
from treadle.errors import ConfigError, SimulatorError, TreadleError

_LAUNCH = Path(__file__).with_name("launch.py")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that simulators run in."""

    python: str
    variables: dict[str, str] = field(default_factory=dict[str, str])
    """Environment variables of its processes, beside those here."""

    @property
    def is_this(self) -> bool:
        """Whether it is the interpreter that asks."""
        return self.python == sys.executable


class WorkerError(RuntimeError):
    """What a worker raised that is not the user's to mend; holds the worker's own trace."""


@dataclass(slots=True)
class Failure:
    """Why a worker cannot do what it was asked to."""

    message: str
    mendable: str | None = "SimulatorError"
    """The name of the `TreadleError`, or None where it is a bug."""
    trace: str = ""
    final: bool = False
    """Trying again is no use."""

    @classmethod
    def of(cls, error: Exception, doing: str = "") -> "Failure":
        """What `error` is, while `doing` something; called where it is handled."""
        mendable = type(error).__name__ if isinstance(error, TreadleError) else None
        said = str(error) if mendable else f"{type(error).__name__}: {error}"
        return cls(
            f"{doing}: {said}" if doing else said, mendable, traceback.format_exc(), isinstance(error, ConfigError)
        )

    def throw(self, note: str = "") -> NoReturn:
        """Raise here what was raised there."""
        if self.mendable is None:
            raise WorkerError(f"{self.message}{note}\n\n{self.trace}")
        raise getattr(errors, self.mendable, SimulatorError)(f"{self.message}{note}")


class SharedFile:
    """Memory that worker processes inherit. It has no name, so nothing is left behind however they end."""

    def __init__(self) -> None:
        if sys.platform == "linux":
            self.number = os.memfd_create("treadle")
        else:
            with tempfile.TemporaryFile() as temporary:
                self.number = os.dup(temporary.fileno())

    def resize(self, size: int) -> None:
        """Give the memory its size, in bytes; what is never written to takes none of the machine's."""
        os.ftruncate(self.number, size)

    def close(self) -> None:
        """Close the file; what is mapped stays until its arrays are gone."""
        os.close(self.number)


class WorkerProcess:
    """Runs `main(connection, memory)` of a module in a process of its own, which ends with this one, however that ends.

    Its libraries take `threads` threads, unless the variables here say otherwise.
    Raises SimulatorError where the interpreter cannot be started.
    """

    def __init__(
        self, module: str, interpreter: Interpreter | None, memory: SharedFile, threads: int | None = None
    ) -> None:
        limits = {} if threads is None else thread_limits(threads)
        chosen = interpreter or Interpreter(sys.executable)
        self.connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [chosen.python, "-P", str(_LAUNCH), module, str(theirs.fileno()), str(memory.number)],
                pass_fds=(theirs.fileno(), memory.number),
                stdin=subprocess.DEVNULL,
                env={**limits, **os.environ, **chosen.variables, "PYTHONPATH": os.pathsep.join(_search_path(chosen))},
                # Ctrl-C is for this process alone, which then ends its workers in order.
                start_new_session=True,
            )
        except OSError as error:
            self.connection.close()
            raise SimulatorError(f"cannot start {chosen.python}: {error.strerror}; check simulator.python") from error
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def ending(self) -> str:
        """How the process ended, once its connection broke."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code >= 0:
            return f"its process ended with code {code}"
        hint = ", which is how the system ends what takes too much memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by signal {signal.Signals(-code).name}{hint}"

    def dump_stack(self) -> None:
        """Write to stderr where the process is."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)

    def stop(self, deadline: float) -> None:
        """Wait until a process that was asked to end has, or end it at `deadline`, of `time.monotonic()`."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self.connection.close()


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables with which torch, BLAS and Mesa's software renderer take so many threads; left alone, each
    takes every core. Mesa draws in the thread that asks where it has none of its own.
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
