"""Commands of Treadle that begin with everything imported, so that a run of seconds is not mostly imports.

`Forks` starts one process that imports what a run needs. For each command it forks, and the copy does what `python -m
treadle.cli ...` does, in a session of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from typer import echo

from treadle.cli import main

PRELOADED = (
    *("treadle.runtime.loop", "treadle.reporting.report", "treadle.training.on_policy.ppo"),
    *("treadle.policies.prismatic.openvla_oft", "treadle.policies.adapters", "tensorboard.summary.writer"),
)
"""What runs import as they go."""
STARTED = 60.0
"""Seconds until the first process listens, and until a copy says its number."""


class Fork:
    """A command that runs."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that ended it. Raises TimeoutExpired."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._connection.recv(64))
            except (TimeoutError, BlockingIOError) as error:
                raise subprocess.TimeoutExpired("treadle", timeout or 0.0) from error
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that commands are copies of; as a context manager, it ends with the block."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="treadle-forks-")
        path = Path(self._folder.name) / "socket"
        self._address = str(path)
        command = [sys.executable, "-P", __file__, self._address]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"the process that is to be copied ended with {self._process.wait(STARTED)}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(STARTED)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    def start(self, arguments: Sequence[str], log: Path) -> Fork:
        """Begin `treadle ARGUMENTS`; what it says is added to `log`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(STARTED)
        connection.connect(self._address)
        connection.send(json.dumps({"arguments": list(arguments), "log": str(log)}).encode())
        return Fork(connection, int(connection.recv(64)))


def _serve(address: str) -> list[str]:
    """Fork for each connection; returns in a copy, with its arguments."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(address)
    listening.listen()
    echo("ready")
    while True:
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            # Those that have ended are forgotten.
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        # This one waits for the command, which is a copy of it.
        listening.close()
        wanted: dict[str, Any] = json.loads(connection.recv(1 << 16))
        if pid := os.fork():
            connection.send(str(pid).encode())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(BrokenPipeError):
                connection.send(str(code).encode())
            os._exit(0)
        connection.close()
        os.setsid()
        # A shell lets what it runs in the background ignore Ctrl-C, which would reach no command then.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(os.devnull) as nothing, open(wanted["log"], "a") as log:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        return wanted["arguments"]


if __name__ == "__main__":
    for module in PRELOADED:
        import_module(module)
    sys.argv[1:] = _serve(sys.argv[1])
    main()
