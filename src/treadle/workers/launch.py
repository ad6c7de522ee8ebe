"""Starts a worker in an interpreter where Treadle need not be installed: `python -P launch.py MODULE SOCKET MEMORY
LIFELINE`.

The last three are inherited file descriptors. Imports the standard library alone, because it reports missing packages.
"""

import faulthandler
import fcntl
import importlib.util
import os
import select
import signal
import sys
import threading
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path


def find_treadle() -> None:
    """Import the package `treadle` from where this file is, whatever else is installed."""
    folder = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "treadle", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["treadle"] = package
    spec.loader.exec_module(package)


def end_with_parent(connection: int, lifeline: int, parent: int) -> None:
    """End this process, and all that it has started, once the other side is gone, whatever the simulator is doing."""
    poll = select.poll()
    for number in (connection, lifeline):
        poll.register(number, 0)
    # A process that the other side has forked may hold its ends open.
    while os.getppid() == parent and not poll.poll(500):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def be_ended_by_the_system(lifeline: int) -> None:
    """Let Linux kill this process group when the last writer of a pipe is gone, also while a simulator that never gives
    Python its lock back keeps threads from running. Nothing is ever written to the pipe.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def main(module: str, connection: int, memory: int, lifeline: int) -> None:
    """Import `module` and let its `main` serve until told to end, or until the other side is gone."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if sys.platform == "linux":
        be_ended_by_the_system(lifeline)
    watched = (connection, lifeline, os.getppid())
    threading.Thread(target=end_with_parent, args=watched, daemon=True).start()
    link = Connection(connection)
    find_treadle()
    from treadle.memory import keep_freed_memory

    keep_freed_memory()
    try:
        worker = import_module(module)
    except ImportError as error:
        from treadle.workers.failure import Failure

        link.send(
            Failure(
                f"{sys.executable}: {error}; a simulator's Python needs numpy beside the simulator's own packages",
                final=True,
            )
        )
        return
    worker.main(link, memory)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
