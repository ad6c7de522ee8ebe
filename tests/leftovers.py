"""What a test has left running."""

from multiprocessing import resource_tracker

import psutil


def workers_left() -> list[psutil.Process]:
    """Child processes, but for Python's own resource tracker, which lives as long as this process."""
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return [child for child in psutil.Process().children(recursive=True) if child.pid != tracker]
