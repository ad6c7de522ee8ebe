"""When each role was busy: the raw material of a timeline."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import NamedTuple


class Span(NamedTuple):
    """One stretch of work."""

    role: str
    """simulate, generate or train."""
    worker: int
    """Which of the role's threads, processes or devices."""
    lanes: tuple[int, ...]
    """The lanes that it was for; none for work that is for all."""
    began: float
    """`time.perf_counter()`, in seconds."""
    ended: float


def busy_seconds(spans: Iterable[Span], role: str) -> float:
    """Seconds that the workers of a role were busy, summed over them."""
    return sum(span.ended - span.began for span in spans if span.role == role)


class Stopwatch:
    """Adds up wall seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Generator[None, None, None]:
        """Add the time of the `with` block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
