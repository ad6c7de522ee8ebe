"""Who plays which slots. Imports the standard library alone."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Part:
    """Slots `first` to `stop` of a lane, played by one worker."""

    lane: int
    first: int
    stop: int


def divide(slots: int, lanes: int, workers: int) -> list[tuple[Part, ...]]:
    """The parts of each worker. Lanes, and the parts of a lane, have as many slots as each other, or one more.

    With as many workers as lanes or more, each works for one lane alone; with fewer, a worker plays several lanes in
    the order in which they are asked for. A worker for which no slot is left has no part.
    """
    parts: list[list[Part]] = [[] for _ in range(workers)]
    for lane, (first, stop) in enumerate(_cut(0, slots, lanes)):
        serving = list(range(lane, workers, lanes)) or [lane % workers]
        for worker, (start, end) in zip(serving, _cut(first, stop, len(serving)), strict=True):
            if end > start:
                parts[worker].append(Part(lane, start, end))
    return [tuple(part) for part in parts]


def share_cores(cores: tuple[int, ...], worker: int, workers: int) -> tuple[int, ...]:
    """The cores of one worker: one in turn, or several where there are more cores than workers."""
    return cores[worker::workers] or cores[worker % len(cores) :][:1] if cores else ()


def _cut(first: int, stop: int, count: int) -> list[tuple[int, int]]:
    edges = [first + (stop - first) * i // count for i in range(count + 1)]
    return list(pairwise(edges))
