"""The simulate role: a worker that plays parts of lanes, in a thread or in a process. Imports numpy, never torch."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treadle.cores import pin
from treadle.data.scenario import Scenario, Split
from treadle.plugins import import_callable
from treadle.simulators.host import Host
from treadle.simulators.protocol import SceneTeacher, Simulator, Slots, Teacher
from treadle.workers.buffer import BufferShape, SharedBuffer
from treadle.workers.expert import ActingExpert
from treadle.workers.failure import Failure
from treadle.workers.messages import (
    Answer,
    Call,
    Enter,
    Entry,
    Hello,
    Part,
    Play,
    Report,
    Restore,
    Session,
    WorkerPlan,
)


class Channel(Protocol):
    """A worker's side of what it is asked and what it says."""

    def recv(self) -> Any:
        """Wait for what is asked next."""

    def send(self, message: Any, /) -> None:
        """Say something."""

    def close(self) -> None:
        """Say no more."""


class PartPlayer:
    """The episodes of one part in one session: it starts scenarios, plays chunks and writes to the buffer."""

    def __init__(self, part: Part, simulator: Simulator, buffer: SharedBuffer, session: Session) -> None:
        self._part = part
        self._simulator = simulator
        self._buffer = buffer
        self._rows = slice(part.first, part.stop)
        self._film = session.film
        self._host = Host(
            simulator,
            self._next,
            session.horizon,
            keep_final=session.keep_final,
            on_action=self._shoot if session.film else None,
            observation=buffer.observation.take(self._rows),
        )
        self._expert = session.expert and ActingExpert(session.expert, simulator, self._host, part.first)
        self._enumerations: dict[tuple[str, Split], Sequence[Scenario]] = {}
        self._upcoming: dict[int, deque[Entry]] = {}
        self._begun: set[int] = set()
        """Rows that were given a scenario, or none any more, since the last report."""
        self._frames: list[tuple[Scenario, NDArray[np.uint8]]] = []
        self._idle()

    def play(self, upcoming: Mapping[int, list[Entry]], report: Report) -> None:
        """Play the actions on the buffer, begin new scenarios in idle slots, and write the results."""
        buffer, rows = self._buffer, self._rows
        self._take(upcoming)
        # Actions come from the policy, or from an expert that acts in its stead.
        actions = buffer.actions[rows]
        if self._expert is not None:
            actions[:, 0] = self._expert.act()
            actions = self._expert.disturbed(actions)
        step = self._host.step(actions)
        # Results with a row for each slot go to the buffer; the report holds the rest.
        for name in ("reward", "terminated", "truncated", "success", "valid", "state"):
            getattr(buffer, name)[rows] = getattr(step, name)
        if len(step.final_slots):
            slots = step.final_slots + self._part.first
            buffer.final.frames[slots] = step.final.frames
            buffer.final.proprioception[slots] = step.final.proprioception
            buffer.final.state[slots] = step.final.state
            report.final_slots = slots.tolist()
        report.episodes = [replace(episode, slot=episode.slot + rows.start) for episode in step.episodes]
        # A film begins with the scene before the first action.
        if self._film:
            begun = [row - self._part.first for row in sorted(self._begun)]
            self._shoot(np.array([slot for slot in begun if self._host.scenarios[slot] is not None], np.intp))
        self._present(report)

    def restore(self, message: Restore, report: Report) -> None:
        """Go on from the state of earlier episodes."""
        self._idle()
        self._upcoming.clear()
        self._take(message.upcoming)
        self._host.restore(message.episodes)
        for slot, scenario in enumerate(self._host.scenarios):
            self._buffer.scenario_index[slot + self._part.first] = -1 if scenario is None else scenario.index
        self._present(report)

    def leave(self) -> None:
        """End the session. Host and expert know this player, so they would stay until Python looks for circles."""
        del self._host, self._expert

    def playing(self) -> list[str]:
        """Names of the scenarios that are played, for an error."""
        return [scenario.id for scenario in self._host.scenarios if scenario is not None]

    def _idle(self) -> None:
        self._buffer.valid[self._rows] = False
        self._buffer.scenario_index[self._rows] = -1

    def _take(self, upcoming: Mapping[int, list[Entry]]) -> None:
        for row, entries in upcoming.items():
            self._upcoming.setdefault(row, deque()).extend(entries)

    def _next(self, slot: int) -> Scenario | None:
        """The scenario that a slot of the host begins next; None lets it idle."""
        row, scenario = slot + self._part.first, None
        if self._upcoming.get(row):
            suite, split, index = self._upcoming[row].popleft()
            if (suite, split) not in self._enumerations:
                self._enumerations[suite, split] = self._simulator.scenarios(suite, split)
            scenario = self._enumerations[suite, split][index]
        index = self._buffer.scenario_index
        if scenario is not None or index[row] >= 0:
            self._begun.add(row)
            index[row] = -1 if scenario is None else scenario.index
        return scenario

    def _shoot(self, slots: Slots) -> None:
        if len(slots):
            for slot, frame in zip(slots.tolist(), self._simulator.render(slots, self._film), strict=True):
                scenario = self._host.scenarios[slot]
                assert scenario is not None
                self._frames.append((scenario, frame))

    def _present(self, report: Report) -> None:
        self._buffer.elapsed[self._rows] = self._host.elapsed
        # What the host plays, for scenes may have worded their instructions.
        report.begun = {row: self._host.scenarios[row - self._part.first] for row in sorted(self._begun)}
        self._begun = set()
        report.frames, self._frames = self._frames, []
        report.playing = bool(len(self._host.playing))


def main(connection: Connection, memory: int) -> None:
    """A worker as a process, started by `treadle.workers.launch`: serve until told to end, or until the other side is
    gone.
    """
    plan: WorkerPlan = connection.recv()
    buffers: list[SharedBuffer] = []

    def attach(shape: BufferShape) -> SharedBuffer:
        # Sessions of one shape share a mapping, for each has an open file of its own.
        if not buffers or buffers[0].shape != shape:
            buffers[:] = [SharedBuffer(shape, memory)]
        return buffers[0]

    serve(connection, plan, attach)


def serve(channel: Channel, plan: WorkerPlan, attach: Callable[[BufferShape], SharedBuffer]) -> None:
    """The life of a worker: build the simulators, say what they are, and answer requests until told to end.

    `attach` maps the shared buffer.
    """
    simulators: list[Simulator] = []
    doing = "building the simulator"
    players: list[PartPlayer] = []
    try:
        pin(plan.cores)
        simulators += [plan.factory(part.stop - part.first) for part in plan.parts]
        first = simulators[0]
        channel.send(
            Hello(first.spec, tuple(first.suites()), isinstance(first, Teacher), isinstance(first, SceneTeacher))
        )
        while (message := channel.recv()) is not None:
            match message:
                case Enter():
                    doing = "beginning a session"
                    for player in players:
                        player.leave()
                    buffer = attach(BufferShape(message.slots, message.chunk, first.spec))
                    players = [
                        PartPlayer(part, simulator, buffer, message.session)
                        for part, simulator in zip(plan.parts, simulators, strict=True)
                    ]
                case Call():
                    doing = f"calling {message.function}"
                    channel.send(Answer(message.number, _call(first, message, plan.name)))
                case _:
                    doing = f"lane {plan.parts[message.part].lane}, playing {_named(players[message.part])}"
                    channel.send(_play(players[message.part], message))
    except (EOFError, ConnectionError):
        # The other side is gone; nobody is left who could be told.
        pass
    except Exception as error:  # noqa: BLE001 - carried to the other side, which raises it
        with suppress(ConnectionError):
            channel.send(Failure.of(error, f"{plan.name}: {doing}"))
    finally:
        for simulator in simulators:
            simulator.close()
        channel.close()


def _call(simulator: Simulator, message: Call, name: str) -> Any:
    """The function's result or its failure; a worker does not end because a function raises."""
    try:
        return import_callable("call", message.function, "function")(simulator, *message.arguments)
    except Exception as error:  # noqa: BLE001 - carried to the other side, which raises it
        return Failure.of(error, f"{name}: calling {message.function}")


def _play(player: PartPlayer, message: Play | Restore) -> Report:
    report = Report(message.part, message.number, time.perf_counter(), 0.0, playing=True)
    if isinstance(message, Restore):
        player.restore(message, report)
    else:
        player.play(message.upcoming, report)
    report.ended = time.perf_counter()
    return report


def _named(player: PartPlayer, shown: int = 3) -> str:
    names = player.playing() or ["nothing yet"]
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
