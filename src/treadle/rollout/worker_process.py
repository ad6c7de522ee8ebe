"""A worker as a process: `python -m treadle.rollout.worker_process SOCKET MEMORY`, two inherited file descriptors."""

import faulthandler
import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

from treadle.rollout.board import Board
from treadle.rollout.worker import WorkerPlan, serve


def main(connection: int, memory: int) -> None:
    """Serve until told to end, or until the other side is gone."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    link = Connection(connection)
    plan: WorkerPlan = link.recv()
    serve(link, plan, lambda shape: Board(shape, memory))


def _end_with_parent(connection: int) -> None:
    """End this process once the other side is gone, whatever the simulator is doing."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
