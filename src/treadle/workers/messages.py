"""Messages between a crew and its workers, as plain data. Imports numpy, never torch.

Messages are small; everything with a row a slot goes by the shared buffer. Slots are those of the buffer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from treadle.data.scenario import Scenario, Split
from treadle.data.step import EpisodeResult
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.host import KeepFinal
from treadle.simulators.protocol import SimulatorSpec


class Part(NamedTuple):
    """Slots `first` to `stop` of a lane, played by one worker."""

    lane: int
    first: int
    stop: int


class Entry(NamedTuple):
    """One scenario by its index in an enumeration; the worker looks it up in its simulator."""

    suite: str
    split: Split
    number: int
    """`Scenario.index`."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The description of a worker."""

    name: str
    factory: SimulatorFactory
    parts: tuple[Part, ...]
    cores: tuple[int, ...] = ()
    """Cores to stay on; empty for any."""
    gpus: tuple[int, ...] = ()
    """Graphics cards that the process sees; empty for all."""


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """A scripted expert that acts in place of a policy, one action at a time."""

    seed: int
    miss_probability: float = 0.0
    """Share of episodes with an injected miss and recovery."""
    jitter: float = 0.0
    """Standard deviation, in metres, of noise on the translations that are played; the report has the expert's own."""
    jitter_seed: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """One use of a crew: how episodes are played from here on."""

    horizon: int
    """Control steps after which an episode is cut."""
    keep_final: KeepFinal = "none"
    film: int = 0
    """Side in pixels of the frames for people that are taken before and after each action; 0 takes none."""
    expert: ExpertSettings | None = None


# Messages to a worker.


@dataclass(frozen=True, slots=True)
class Enter:
    """Map the buffer, of `chunk` actions per decision, and begin a session in which every slot idles."""

    slots: int
    chunk: int
    session: Session


@dataclass(frozen=True, slots=True)
class Play:
    """Play the actions on the buffer, in the slots of a part that have an episode; then idle slots begin their next
    scenarios.
    """

    part: int
    upcoming: Mapping[int, list[Entry]]
    """Scenarios that slots play next, in order, after those that they were given earlier."""
    number: int = 0
    """The number of the request, which the report repeats."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Bring a part to the state of its episodes, by repeating their actions [n, A]; None is an idle slot."""

    part: int
    episodes: list[tuple[Scenario, NDArray[np.float32]] | None]
    upcoming: Mapping[int, list[Entry]]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """Call `package.module:function` with the worker's first simulator; the answer holds the result."""

    function: str
    arguments: tuple[Any, ...]
    number: int = 0
    part: ClassVar[int] = -1
    """It is of no part."""


# Messages of a worker.


@dataclass(frozen=True, slots=True)
class Hello:
    """The simulators are built; what they are and can do."""

    spec: SimulatorSpec
    suites: tuple[str, ...]
    teaches: bool
    """It has a scripted expert."""
    renders_scenes: bool
    """It renders scenes with the truth about them."""


@dataclass(slots=True)
class Report:
    """A part has its next observations on the buffer."""

    part: int
    number: int
    began: float
    """`time.perf_counter()`, one clock for all processes of a machine."""
    ended: float
    playing: bool
    """Some slot has an episode."""
    final_slots: list[int] = field(default_factory=list[int])
    """Rows of the buffer's `final` that were written."""
    episodes: list[EpisodeResult] = field(default_factory=list[EpisodeResult])
    """Episodes that ended, in order of slot."""
    begun: dict[int, Scenario | None] = field(default_factory=dict[int, Scenario | None])
    """Scenarios that slots play from now on, None where they idle; slots without a change are left out."""
    frames: list[tuple[Scenario, NDArray[np.uint8]]] = field(default_factory=list[tuple[Scenario, NDArray[np.uint8]]])
    """Frames of the film, in order of time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a call."""

    number: int
    value: Any
