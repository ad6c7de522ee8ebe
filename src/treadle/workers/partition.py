"""The partition of slots among lanes and workers. Imports numpy, never torch."""

from itertools import pairwise

from treadle.workers.messages import Part


def partition(slots: int, lanes: int, workers: int) -> list[tuple[Part, ...]]:
    """The parts of each worker. The sizes of lanes differ by one slot at most, and so do the parts of a lane.

    If there are at least as many workers as lanes, each worker serves one lane. With fewer, a worker plays several
    lanes in the order of the requests. A worker for which no slot is left has no part.
    """
    parts: list[list[Part]] = [[] for _ in range(workers)]
    for lane, (first, stop) in enumerate(cut(0, slots, lanes)):
        serving = list(range(lane, workers, lanes)) or [lane % workers]
        for worker, (start, end) in zip(serving, cut(first, stop, len(serving)), strict=True):
            if end > start:
                parts[worker].append(Part(lane, start, end))
    return [tuple(part) for part in parts]


def cut(first: int, stop: int, count: int) -> list[tuple[int, int]]:
    """`first` to `stop` in `count` pieces, whose sizes differ by one at most."""
    edges = [first + (stop - first) * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def share_devices(devices: tuple[int, ...], worker: int, workers: int) -> tuple[int, ...]:
    """The devices of one worker: one in turn, or several where there are more devices than workers."""
    return devices[worker::workers] or devices[worker % len(devices) :][:1] if devices else ()
