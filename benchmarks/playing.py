"""Simulators at play, in the ways that `treadle bench simulator` compares.

Shapes: B slots, C control steps per decision, A action dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.bare import bare_loop
from benchmarks.elsewhere import SHOW, Elsewhere, open_simulator
from benchmarks.timing import time_rounds
from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.policies.protocol import Policy, Sampling
from treadle.simulators.host import Host
from treadle.simulators.protocol import Simulator
from treadle.workers.crew import Crew
from treadle.workers.episode_log import Assignment
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Entry, Session
from treadle.workers.plan import plan_crew

CHUNK = 4
"""Control steps between two frames where a frame is drawn per decision."""
STEPS = 8
"""Control steps of one round with frames, from a reset on; a multiple of CHUNK."""
LONGER = 4
"""So many times STEPS are in a round without frames, and in one of lanes."""
NEVER = 10**9
_LONG = 10**5
"""Control steps that no benchmark reaches, where what is kept grows with them."""

Work = tuple[Callable[[], object], Callable[[], object]]
"""What comes before a round, and the round."""


class Loops:
    """Bare loops in processes that know nothing of each other."""

    def __init__(self, config: SimulatorConfig, count: int) -> None:
        with ExitStack() as opened:
            simulators = [opened.enter_context(closing(open_simulator(config, slots=1))) for _ in range(count)]
            self._loops = [bare_loop(simulator, first_scenario(simulator)) for simulator in simulators]
            self._threads = opened.enter_context(ThreadPoolExecutor(count))
            self._opened = opened.pop_all()
        self._actions = small_motions(1, simulators[0].spec.action_dim)[0]

    def play(self, count: int) -> None:
        """STEPS control steps in so many of them, side by side."""
        list(self._threads.map(lambda loop: loop.play(self._actions), self._loops[:count]))

    def close(self) -> None:
        """Release the simulators."""
        self._opened.close()


class Playing(ABC):
    """A simulator whose slots all play the same."""

    simulator: Simulator

    def __init__(self, simulator: Simulator, threads: int) -> None:
        self.simulator = simulator
        self._threads = threads
        self.actions = small_motions(simulator.slots, simulator.spec.action_dim)

    @abstractmethod
    def begin(self, chunk: int) -> None:
        """Put all slots at the start of their scenarios; decisions are of `chunk` control steps."""

    @abstractmethod
    def step(self, actions: NDArray[np.float32]) -> None:
        """Play one decision [B, C, A], and look at what comes of it."""

    @abstractmethod
    def seen(self) -> tuple[Observation, list[str]]:
        """What is seen of every slot, and what it is asked to do."""

    @property
    @abstractmethod
    def unseen(self) -> Work:
        """LONGER times STEPS control steps without frames."""

    def with_frames(self, chunk: int) -> Work:
        """STEPS control steps, with a frame after each `chunk`."""

        def play() -> None:
            for start in range(0, STEPS, chunk):
                self.step(self.actions[:, start : start + chunk])

        return partial(self.begin, chunk), play

    def forward(self, policy: Policy | None, seconds: float) -> float | None:
        """Seconds of one decision for all slots."""
        if policy is None:
            return None
        torch.set_num_threads(self._threads)
        (seen, texts), sampling = self.seen(), Sampling()

        def decide() -> None:
            policy.act(policy.prepare(seen.frames, texts, seen.proprioception), sampling)

        return float(np.median(time_rounds(decide, seconds)))

    def close(self) -> None:
        """Release the simulator."""
        self.simulator.close()


class PlayingHere(Playing):
    """In this process, through the host."""

    def __init__(self, config: SimulatorConfig) -> None:
        super().__init__(open_simulator(config), config.threads or 1)
        scenario = first_scenario(self.simulator)
        self._host = Host(self.simulator, lambda _: scenario, NEVER)

    def begin(self, chunk: int) -> None:
        """See `Playing.begin`."""
        self._host.start()

    def step(self, actions: NDArray[np.float32]) -> None:
        """See `Playing.step`."""
        self._host.step(actions)

    def seen(self) -> tuple[Observation, list[str]]:
        """See `Playing.seen`."""
        return self._host.observation, [self._host.scenario(slot).instruction for slot in self._host.playing.tolist()]

    @property
    def unseen(self) -> Work:
        """By the simulator alone: a host always asks for frames."""
        slots = np.arange(self.simulator.slots)
        limits = np.full(len(slots), STEPS, np.intp)

        def play() -> None:
            for _ in range(LONGER):
                self.simulator.step(slots, self.actions, limits)

        return self._host.start, play


class PlayingInWorkers(Playing):
    """In worker processes that divide the slots: in one lane, for which all of them wait, or in several.

    Args:
        config: the simulator.
        workers: how many.
        lanes: the same number, or 1.
    """

    def __init__(self, config: SimulatorConfig, workers: int, lanes: int = 1) -> None:
        config = config.model_copy(update={"horizon": _LONG})
        self._crew = Crew(plan_crew(config, CollectionConfig(lanes=lanes, workers=workers), accelerated=False))
        super().__init__(Elsewhere(self._crew), config.threads or 1)
        self._source = _Always(Entry(self._crew.suites[0], "evaluation", 0))
        self.begin(CHUNK)

    def begin(self, chunk: int, shown: bool = True) -> None:
        """See `Playing.begin`."""
        for worker in range(self._crew.workers):
            self._crew.call(SHOW, shown, worker=worker)
        self._lanes = Lanes(self._crew, Session(_LONG), self._source, chunk)
        for lane in range(len(self._lanes)):
            self._lanes.begin(lane)
        self._wait(len(self._lanes))

    def step(self, actions: NDArray[np.float32]) -> None:
        """See `Playing.step`."""
        self._play([actions])

    def seen(self) -> tuple[Observation, list[str]]:
        """See `Playing.seen`."""
        return self._lanes.buffer.observation, [scenario.instruction for scenario in self._lanes.scenarios]

    @property
    def unseen(self) -> Work:
        """With a simulator that shows nothing."""
        return partial(self.begin, STEPS, shown=False), lambda: self._play([self.actions] * LONGER)

    def play_on(self) -> None:
        """LONGER times STEPS control steps, with a frame after each CHUNK and without a reset: there and back, for no
        episode ends on the way. No lane waits for another.
        """
        motion = self.actions[:, :CHUNK]
        self._play([motion, -motion] * (LONGER * STEPS // CHUNK // 2))

    def _play(self, decisions: Iterable[NDArray[np.float32]]) -> None:
        lanes = self._lanes
        coming = [iter(list(decisions)) for _ in lanes.rows]
        idle, busy = list(range(len(lanes))), 0
        while idle:
            for lane in idle:
                if (actions := next(coming[lane], None)) is not None:
                    lanes.buffer.actions[lanes.rows[lane]] = actions[lanes.rows[lane]]
                    lanes.play(lane)
                    busy += 1
            idle = [arrival.lane for arrival in lanes.ready(busy)] if busy else []
            busy -= len(idle)

    def _wait(self, arrivals: int) -> None:
        while arrivals:
            arrivals -= len(self._lanes.ready(arrivals))


class _Always:
    """A source that gives every slot one scenario, again and again."""

    ahead = 0

    def __init__(self, entry: Entry) -> None:
        self._given = Assignment(entry, 0)

    def next(self, slot: int) -> Assignment:
        return self._given

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """There is nothing to load."""


def first_scenario(simulator: Simulator) -> Scenario:
    """What every slot plays, so that all have the same to do."""
    return simulator.scenarios(simulator.suites()[0], "evaluation")[0]


def small_motions(slots: int, action_dim: int) -> NDArray[np.float32]:
    """Random actions [slots, STEPS, A] that solve nothing, so that every slot plays every step; the same for all of
    them, for what a motion leads to has a cost too.
    """
    motion = np.random.default_rng(0).normal(0, 0.01, (1, STEPS, action_dim)).astype(np.float32)
    return np.repeat(motion, slots, axis=0)
