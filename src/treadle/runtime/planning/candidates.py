"""What a run could be: placements, lanes and overlap, each with the time that its iterations would take."""

from collections.abc import Iterator
from dataclasses import dataclass

from treadle.config.schema import TrainConfig
from treadle.errors import PlacementError
from treadle.runtime.placement import Machines, Placement, place
from treadle.runtime.planning.profile import Profile
from treadle.runtime.planning.shape import Shape, shape_of
from treadle.runtime.planning.timeline import Timeline, simulate_timeline

LANES = (1, 2, 4)
OVERLAPS = ("none", "stream", "async")
_ALIKE = 0.02
"""Of two plans whose seconds differ by less, the simpler one is recommended."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run a recipe."""

    config: TrainConfig
    placement: Placement
    shape: Shape
    timeline: Timeline

    @property
    def lanes(self) -> int:
        """Of each player."""
        return max(player.lanes for player in self.shape.players)

    @property
    def seconds(self) -> float:
        """Of an iteration."""
        return self.timeline.seconds

    @property
    def bound(self) -> tuple[str, float]:
        """The role whose devices are busiest with it, and for which share of the time."""
        busy = self.timeline.busy()
        role = max(busy, key=lambda name: busy[name])
        return role, busy[role]

    @property
    def overrides(self) -> list[str]:
        """Settings that make it."""
        asked = self.config.placement
        placed = [f"placement.{role}={getattr(asked, role)}" for role in ("simulate", "generate", "train")]
        return [*placed, f"collection.lanes={self.lanes}", f"overlap={self.config.overlap}"]


def as_configured(config: TrainConfig, placement: Placement, profile: Profile) -> Candidate:
    """The recipe as it is, in a placement of it."""
    shape = shape_of(config, placement, profile)
    return Candidate(config, placement, shape, simulate_timeline(shape, profile))


def candidates(config: TrainConfig, machines: Machines, profile: Profile) -> list[Candidate]:
    """Every way that is looked at, the fastest first; of those that are alike, the one that changes least."""
    found: list[Candidate] = []
    for placed in _placements(config, machines):
        for overlap in _overlaps(placed):
            changed = placed.model_copy(update={"overlap": overlap})
            for lanes in (config.collection.lanes,) if config.collection.lanes else LANES:
                collection = config.collection.model_copy(update={"lanes": lanes})
                laned = changed.model_copy(update={"collection": collection})
                try:
                    found.append(as_configured(laned, place(laned, machines), profile))
                except PlacementError:
                    # More lanes than slots, or more processes than groups of them.
                    continue
    return sorted(found, key=lambda candidate: candidate.seconds)


def recommend(found: list[Candidate]) -> Candidate:
    """The fastest; another that is as fast, where it needs less: no older weights, fewer processes, fewer lanes."""
    fastest = found[0].seconds
    alike = [candidate for candidate in found if candidate.seconds <= fastest * (1 + _ALIKE)]
    return min(alike, key=lambda c: (OVERLAPS.index(c.config.overlap), len(c.placement.processes), c.lanes))


def _overlaps(config: TrainConfig) -> Iterator[str]:
    yield "none"
    if config.algorithm.not_streamed(config) is None:
        yield "stream"
    yield "async"


def _placements(config: TrainConfig, machines: Machines) -> Iterator[TrainConfig]:
    """The recipe's placement, and the usual ones: every role on all devices; playing on some, training on the others;
    simulating on one half, generating on the other, training on both; each role on devices of its own.
    """
    count = sum(map(len, machines.devices))
    half = count // 2
    splits: list[tuple[str, str, str]] = [("all", "all", "all")]
    for first in sorted({1, half, count - 1} if count > 1 else ()):
        playing, training = _range(0, first), _range(first, count)
        splits += [(playing, playing, training)] if 0 < first < count else []
    if count > 1:
        splits.append((_range(0, half), _range(half, count), "all"))
    if count >= 4:
        quarter = count // 4
        splits.append((_range(0, quarter), _range(quarter, 2 * quarter), _range(2 * quarter, count)))
    asked = config.placement
    own = (asked.simulate, asked.generate, asked.train)
    for simulate, generate, train in [own, *(split for split in splits if split != own)]:
        update = {"simulate": simulate, "generate": generate, "train": train}
        yield config.model_copy(update={"placement": asked.model_copy(update=update)})


def _range(first: int, stop: int) -> str:
    return str(first) if stop == first + 1 else f"{first}-{stop - 1}"
