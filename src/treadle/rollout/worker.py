"""The simulate role: a worker that plays parts of lanes, in a thread or in a process. Imports numpy, never torch."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from treadle.cores import pin
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.rollout.board import Board, BoardShape
from treadle.rollout.division import Part
from treadle.rollout.journal import read_episodes
from treadle.rollout.stream import ScenarioStream
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import Host, KeepFinal
from treadle.simulators.process import Failure
from treadle.simulators.protocol import Simulator

START, PLAY, RESTORE = range(3)
"""What a worker is asked to do with a part: begin its episodes, play the actions on the board, go on from a state of
the journal."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker is to be, as plain data."""

    name: str
    factory: SimulatorFactory
    parts: tuple[Part, ...]
    slots: int
    """Of all lanes."""
    horizon: int
    keep_final: KeepFinal
    stream: dict[str, Any]
    """Keyword arguments of `ScenarioStream` beside scenarios and slots."""
    cores: tuple[int, ...] = ()
    """Cores to stay on; none for any."""


@dataclass(slots=True)
class Report:
    """What a worker says once a part has its next observation on the board. Slots are those of the board."""

    part: int
    command: int
    began: float
    """`time.perf_counter()`, one clock for all processes of a machine."""
    ended: float
    playing: bool
    """Some slot has an episode."""
    final_slots: list[int] = field(default_factory=list[int])
    """Rows of the board's `final` that were written."""
    final_instructions: list[str] = field(default_factory=list[str])
    """What those episodes were asked to do."""
    episodes: list[EpisodeResult] = field(default_factory=list[EpisodeResult])
    """Those that ended, in order of slot."""
    begun: dict[int, Scenario | None] = field(default_factory=dict[int, Scenario | None])
    """What slots play from now on, None where they idle."""


class PartHost:
    """Episodes of one part: its host, its stream, and the noise that its scenarios come with."""

    def __init__(self, plan: WorkerPlan, part: Part, simulator: Simulator, board: Board) -> None:
        self._part = part
        self._board = board
        self._rows = slice(part.first, part.stop)
        self._stream = ScenarioStream(simulator.scenarios("train", "train"), plan.slots, **plan.stream)
        self._host = Host(
            simulator,
            self._next,
            plan.horizon,
            keep_final=plan.keep_final,
            observation=board.rows(part.first, part.stop),
        )
        chunk, tokens = board.actions.shape[1], board.noise.shape[1]
        self._slots = np.arange(part.stop - part.first)
        self._chunk = chunk
        self._noise = np.zeros((len(self._slots), -(-plan.horizon // chunk), tokens), np.float32)
        self._begun: dict[int, Scenario | None] = {}
        board.scenario_index[self._rows] = -1

    def start(self, report: Report) -> None:
        """Begin an episode in every slot."""
        if not self._stream.partial_reset:
            self._stream.begin_round()
        self._board.valid[self._rows] = False
        self._host.start()
        self._present(report)

    def play(self, report: Report) -> None:
        """Play the actions on the board, and write what came of them and the next observation."""
        board, rows = self._board, self._rows
        step = self._host.step(board.actions[rows])
        for name in ("reward", "terminated", "truncated", "valid", "state"):
            getattr(board, name)[rows] = getattr(step, name)
        if len(step.final_slots):
            slots = step.final_slots + self._part.first
            board.final.frames[slots] = step.final.frames
            board.final.proprioception[slots] = step.final.proprioception
            board.final.state[slots] = step.final.state
            report.final_slots = slots.tolist()
            report.final_instructions = step.final.instructions
        report.episodes = step.episodes
        self._present(report)

    def restore(self, state: dict[str, Any], report: Report) -> None:
        """Go on from `state`, of the journal's rows of this part."""
        self._stream.episodes[self._rows] = state["episodes"]
        self._board.valid[self._rows] = False
        self._board.scenario_index[self._rows] = -1
        self._host.restore(read_episodes(state))
        for slot, scenario in enumerate(self._host.scenarios):
            self._begin(slot, scenario)
        self._present(report)

    def playing(self) -> list[str]:
        """What is played, to be named in an error."""
        return [scenario.id for scenario in self._host.scenarios if scenario is not None]

    def _next(self, slot: int) -> Scenario | None:
        scenario = self._stream(slot + self._part.first)
        self._begin(slot, scenario)
        return scenario

    def _begin(self, slot: int, scenario: Scenario | None) -> None:
        row = slot + self._part.first
        self._begun[row] = scenario
        self._board.scenario_index[row] = -1 if scenario is None else scenario.index
        if scenario is not None:
            self._noise[slot] = self._stream.noise(row, *self._noise.shape[1:])

    def _present(self, report: Report) -> None:
        board, rows = self._board, self._rows
        board.noise[rows] = self._noise[self._slots, self._host.elapsed // self._chunk]
        board.elapsed[rows] = self._host.elapsed
        board.episodes[rows] = self._stream.episodes[rows]
        report.begun, self._begun = self._begun, {}
        report.playing = bool(len(self._host.playing))


class Channel(Protocol):
    """A worker's side of what it is asked and what it says."""

    def recv(self) -> Any:
        """Wait for what is asked next."""

    def send(self, message: Any, /) -> None:
        """Say something."""

    def close(self) -> None:
        """Say no more."""


def serve(connection: Channel, plan: WorkerPlan, attach: Callable[[BoardShape], Board]) -> None:
    """The life of a worker: build the simulators, tell what they are, and do what is asked until told to end.

    Messages are small; everything with a row a slot goes by the board, which `attach` maps.
    """
    simulators: list[Simulator] = []
    doing = "building the simulator"
    hosts: list[PartHost] = []
    try:
        pin(plan.cores)
        simulators += [plan.factory(part.stop - part.first) for part in plan.parts]
        connection.send(simulators[0].spec)
        shape: BoardShape | None = connection.recv()
        if shape is None:
            return
        board = attach(shape)
        hosts += [PartHost(plan, part, made, board) for part, made in zip(plan.parts, simulators, strict=True)]
        while True:
            asked: tuple[int, int, Any] | None = connection.recv()
            if asked is None:
                return
            command, index, state = asked
            doing = f"lane {plan.parts[index].lane}, playing {_named(hosts[index])}"
            report = Report(index, command, time.perf_counter(), 0.0, playing=True)
            if command == START:
                hosts[index].start(report)
            elif command == PLAY:
                hosts[index].play(report)
            else:
                hosts[index].restore(state, report)
            report.ended = time.perf_counter()
            connection.send(report)
    except (EOFError, ConnectionError):
        # The other side is gone, and with it everyone who could be told.
        pass
    except Exception as error:  # noqa: BLE001 - carried to the other side, which raises it
        with suppress(ConnectionError):
            connection.send(Failure.of(error, f"{plan.name}: {doing}"))
    finally:
        for simulator in simulators:
            simulator.close()
        connection.close()


def _named(host: PartHost, shown: int = 3) -> str:
    names = host.playing() or ["nothing yet"]
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
