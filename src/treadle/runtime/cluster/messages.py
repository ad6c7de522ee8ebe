"""What the driver of a run and its members tell each other, as plain data."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from treadle.data.step import EpisodeResult
from treadle.runtime.placement import Placement

Ended = tuple[dict[int, EpisodeResult], int]
"""Episodes of an evaluation by their numbers, and how many the suite has; 0 before the member knows."""


class Part(NamedTuple):
    """Slots of a player whose decisions a rank learns from."""

    player: int
    first: int
    """Of the player's own slots, from 0."""
    stop: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that a member raised."""

    error: BaseException | None
    """A `TreadleError`, which is the user's to mend; None for anything else."""
    trace: str
    """Where it was raised."""


@dataclass(slots=True)
class Answer:
    """What came of a call."""

    value: Any = None
    fault: Fault | None = None
    records: list[str] = field(default_factory=list[str])
    """What was logged meanwhile, warnings and worse."""


def routes(placement: Placement) -> list[list[Part]]:
    """For each rank, which slots of which players make up its own, in order."""
    found: list[list[Part]] = []
    for rank in placement.ranks:
        parts: list[Part] = []
        for player in placement.players:
            first = max(rank.slots.start, player.slots.start)
            stop = min(rank.slots.stop, player.slots.stop)
            if first < stop:
                parts.append(Part(player.number, first - player.slots.start, stop - player.slots.start))
        found.append(parts)
    return found
