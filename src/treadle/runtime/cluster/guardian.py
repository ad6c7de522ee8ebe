"""Ends what is left of the Ray that a run started, however the run ends: `python guardian.py FOLDER`.

It reads process numbers, one a line, until the run closes the pipe or is gone. Ray ends most of its processes itself;
its agents outlive a run that is killed. Imports no part of Treadle.
"""

import shutil
import sys
import time
from contextlib import suppress

import psutil

GRACE = 5.0
"""Seconds that processes have to end by themselves."""


def main(folder: str) -> None:
    """Wait for the end of the run, then of its processes, and remove its folder."""
    processes: list[psutil.Process] = []
    for line in sys.stdin:
        with suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(int(line)))
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and any(process.is_running() for process in processes):
        time.sleep(0.1)
    for process in processes:
        # `kill` looks whether the number is another process's by now.
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
