"""Lanes: groups of slots. Each lane advances on its own, while the policy decides for another.

Shapes: B slots of all lanes, n some of them.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treadle.data.noise import noise_key
from treadle.data.scenario import Scenario
from treadle.data.span import Span
from treadle.data.step import EpisodeResult
from treadle.workers.buffer import SharedBuffer
from treadle.workers.crew import Crew
from treadle.workers.episode_log import Assignment, EpisodeLog
from treadle.workers.messages import Entry, Part, Play, Report, Session

Rows = slice | NDArray[np.intp]
"""Slots of the buffer: neighbours, or any."""


class ScenarioSource(Protocol):
    """It says which scenarios are played. Its answers depend on counters alone, never on timing."""

    ahead: int
    """How many scenarios a slot is given beside its present one, so that it begins the next without asking."""

    def next(self, slot: int) -> Assignment | None:
        """The next scenario of a slot, None where it has no more."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


@dataclass(slots=True)
class Arrival:
    """A lane whose next observations are on the buffer, with the results of its last chunk."""

    lane: int
    playing: bool = False
    """Some slot of the lane has an episode."""
    final_slots: list[int] = field(default_factory=list[int])
    """Rows of the buffer's `final` that hold the last observation of an episode."""
    episodes: list[EpisodeResult] = field(default_factory=list[EpisodeResult])
    """Episodes that ended, in order of slot."""
    frames: list[tuple[Scenario, NDArray[np.uint8]]] = field(default_factory=list[tuple[Scenario, NDArray[np.uint8]]])
    """Frames of the film, in order of time."""
    spans: list[Span] = field(default_factory=list[Span])
    """When its workers were busy with it."""


class Lanes:
    """Episodes in k lanes, in one session of a crew: ask a lane to play, and take lanes as they get ready.

    Several `Lanes` may share a crew, one after another: each resumes where it was.

    Args:
        crew: it plays.
        session: how episodes are played.
        source: which scenarios are played.
        chunk: actions that are played at a time.
        decision: actions per decision, by default the chunk; more where a decision is played in parts.
    """

    def __init__(
        self, crew: Crew, session: Session, source: ScenarioSource, chunk: int, decision: int | None = None
    ) -> None:
        self.crew = crew
        self.source = source
        self._session = session
        self._chunk = chunk
        self._decision = decision or chunk
        self._parts: list[list[tuple[int, int, Part]]] = [[] for _ in range(crew.plan.lanes)]
        """Worker, index and part of each lane's parts, in order of slot."""
        for worker, parts in enumerate(crew.parts):
            for index, part in enumerate(parts):
                self._parts[part.lane].append((worker, index, part))
        for parts in self._parts:
            parts.sort(key=lambda entry: entry[2].first)
        self.rows = crew.rows
        """The slots of each lane, which are neighbours."""
        self._log = EpisodeLog(crew.plan.slots, session.horizon, crew.spec.action_dim)
        self._hungry = [set(range(rows.start, rows.stop)) for rows in self.rows]
        """Slots of each lane that may take another scenario."""
        self._reports: list[dict[int, tuple[int, Report]]] = [{} for _ in self.rows]
        """Reports of each lane's parts so far, with the worker, by first slot."""
        self._arrived: list[int] = []
        self._moved = False
        """Slots are elsewhere than the workers have them."""
        self.buffer = self._enter()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def started(self) -> bool:
        """Some slot has an episode."""
        return bool(self._log.playing.any())

    @property
    def scenarios(self) -> NDArray[np.object_]:
        """[B] the `Scenario` that each slot plays, None where it idles."""
        return self._log.scenarios

    def playing(self, lane: int) -> Rows:
        """The slots of a lane that have an episode; a slice if all have one, which reads the buffer without a copy."""
        rows = self.rows[lane]
        playing = self._log.playing[rows]
        return rows if playing.all() else np.flatnonzero(playing) + rows.start

    def noise_keys(self, rows: Rows) -> NDArray[np.uint64]:
        """[n] keys of the noise of the next decisions; they follow from each slot's episode and decision."""
        return noise_key(self._log.keys[rows], self._log.elapsed[rows] // self._decision)

    def elapsed(self, rows: Rows) -> NDArray[np.int64]:
        """[n] control steps of each slot's episode so far."""
        return self._log.elapsed[rows]

    def resume(self) -> None:
        """Go on where these lanes were, if the crew has played for others since, or a state was loaded: unfinished
        episodes repeat the actions that they had played. Raises as `Crew.receive`.
        """
        if self.crew.session is not self._session:
            self.buffer = self._enter()
            self._moved = self._moved or self.started
        if self._moved:
            self._restore()
            self._moved = False

    def feed(self) -> None:
        """Let every slot ask the source again: it has more to give."""
        self._hungry = [set(range(rows.start, rows.stop)) for rows in self.rows]

    def begin(self, lane: int) -> bool:
        """Let idle slots of a lane begin the source's next scenarios; False if it has none for them."""
        upcoming = self._supply(lane)
        if upcoming:
            self._play(lane, upcoming)
        return bool(upcoming)

    def play(self, lane: int) -> None:
        """Play the actions on the buffer, in a lane that has arrived; then idle slots begin new episodes."""
        self._play(lane, self._supply(lane))

    def ready(self, most: int) -> list[Arrival]:
        """Wait until a lane is ready; at least one and at most `most` of those that are, the longest ready first.

        Raises as `Crew.receive`.
        """
        if self._arrived:
            self._receive(wait=False)
        while not self._arrived:
            self._receive(wait=True)
        lanes, self._arrived = self._arrived[:most], self._arrived[most:]
        return [self._take(lane) for lane in lanes]

    def state_dict(self) -> dict[str, Any]:
        """The state of every slot and of the source, whatever the lanes; no lane may be playing."""
        return {**self._log.state_dict(), "source": self.source.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with any number of lanes, once they are resumed. Raises ValueError for one that does not
        fit.
        """
        self._log.load_state_dict(state)
        self.source.load_state_dict(state["source"])
        self._moved = True

    def _enter(self) -> SharedBuffer:
        return self.crew.enter(self._session, self._chunk, self._log)

    def _restore(self) -> None:
        """Bring every part to its state in the log."""
        asked = [(worker, index) for parts in self._parts for worker, index, _ in parts]
        for worker, index in asked:
            self.crew.restore(worker, index)
        left = len(asked)
        while left:
            left -= len(self.crew.receive(wait=True))

    def _supply(self, lane: int) -> dict[int, list[Entry]]:
        """New scenarios for the slots of a lane."""
        log, given = self._log, dict[int, list[Entry]]()
        for slot in sorted(self._hungry[lane]):
            wanted = self.source.ahead + (not log.playing[slot])
            while len(log.upcoming[slot]) < wanted and (assignment := self.source.next(slot)) is not None:
                log.upcoming[slot].append(assignment)
                given.setdefault(slot, []).append(assignment.entry)
        self._hungry[lane].clear()
        return given

    def _play(self, lane: int, upcoming: dict[int, list[Entry]]) -> None:
        for worker, index, part in self._parts[lane]:
            own = {slot: entries for slot, entries in upcoming.items() if part.first <= slot < part.stop}
            self.crew.play(worker, Play(index, own))

    def _receive(self, *, wait: bool) -> None:
        for worker, report in self.crew.receive(wait=wait):
            part = self.crew.parts[worker][report.part]
            self._log.note(self.buffer, part.first, part.stop, report.begun)
            self._hungry[part.lane].update(report.begun)
            reports = self._reports[part.lane]
            reports[part.first] = worker, report
            if len(reports) == len(self._parts[part.lane]):
                self._arrived.append(part.lane)

    def _take(self, lane: int) -> Arrival:
        arrival = Arrival(lane)
        for _, (worker, report) in sorted(self._reports[lane].items()):
            arrival.playing |= report.playing
            arrival.final_slots += report.final_slots
            arrival.episodes += report.episodes
            arrival.frames += report.frames
            arrival.spans.append(Span("simulate", worker, (lane,), report.began, report.ended))
        self._reports[lane] = {}
        return arrival
