"""Processor cores: which this process may use, and pinning a thread to some of them."""

import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager

from treadle.errors import PlacementError

CAN_PIN = sys.platform == "linux"


def usable_cores() -> tuple[int, ...]:
    """The cores that the calling thread may run on: in a container, or pinned, they are fewer than the machine has."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def check_cores(key: str, cores: Iterable[int]) -> None:
    """Raises PlacementError, naming the setting `key`, where a thread cannot be pinned to `cores`."""
    wanted = set(cores)
    if wanted and not CAN_PIN:
        raise PlacementError(f"{key}: this system ({sys.platform}) does not pin threads to cores; leave {key} empty")
    usable = usable_cores()
    if missing := sorted(wanted.difference(usable)):
        raise PlacementError(
            f"{key}: found core {missing[0]}; this process may use {', '.join(map(str, usable))} "
            f"(cores count from 0). Choose among them, or leave {key} empty"
        )


def pin(cores: Iterable[int]) -> None:
    """Keep the calling thread, and the threads it starts from now on, on `cores`; with none of them, do nothing."""
    wanted = set(cores)
    if wanted and sys.platform == "linux":
        os.sched_setaffinity(0, wanted)


@contextmanager
def pinned(cores: Iterable[int]) -> Generator[None, None, None]:
    """Pin the calling thread for the `with` block."""
    before = usable_cores()
    wanted = tuple(cores)
    pin(wanted)
    try:
        yield
    finally:
        if wanted:
            pin(before)
