"""A simulator whose every number can be worked out by hand. Imports numpy alone, as a worker does.

Shapes: n slots addressed, C actions of a chunk.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import SimulatorError
from treadle.simulators.protocol import ActionDimension, SimulatorSpec, Slots

ACTIONS = (ActionDimension("pull", "relative", metres=0.5), ActionDimension("grip", "gripper"))


def scenario(index: int, suite: str = "train", split: Split = "train") -> Scenario:
    return Scenario("fake", suite, "task", split, index, f"do {index}")


def one_after_another(scenarios: Iterable[Scenario]) -> Callable[[int], Scenario | None]:
    """For a host: each scenario once, to whichever slot asks first."""
    remaining = iter(scenarios)
    return lambda _: next(remaining, None)


@dataclass(frozen=True)
class Script:
    """How a scenario goes: the control step (from 1) that ends it, and those at which its goal holds."""

    ends: int | None = None
    succeeds: tuple[int, ...] = ()


class FakeSimulator:
    """Step k of an episode earns k plus the action's first number. Proprioception and state are (index, steps)."""

    def __init__(self, slots: int, scripts: Mapping[int, Script] | None = None, horizon: int = 10) -> None:
        self.slots = slots
        self.spec = SimulatorSpec("fake", ("front",), 4, 4, ACTIONS, 2, 2, horizon, 20.0)
        self.scripts = scripts or {}
        self.limits: list[list[int]] = []
        self.now: list[Scenario | None] = [None] * slots
        self.steps = np.zeros(slots, np.int64)
        self.over = np.zeros(slots, np.bool_)
        self.closed = False

    def suites(self) -> tuple[str, ...]:
        return ("train", "odd", "odd/a", "odd/b")

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        if suite == "odd":
            return [scenario(i // 2, f"odd/{'ab'[i % 2]}", split) for i in range(10)]
        return [scenario(i, suite, split) for i in range(20)]

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        return [scenario.instruction, *(f"or {scenario.index}.{i}" for i in range(5))]

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        assert len(slots) == len(scenarios) > 0
        for slot, what in zip(slots.tolist(), scenarios, strict=True):
            self.now[slot] = what
        self.steps[slots] = 0
        self.over[slots] = False

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        assert len(slots) == len(actions) == len(limits) > 0
        self.limits.append(limits.tolist())
        out = Outcome.empty(len(actions), actions.shape[1], self.spec.state_dim)
        for row, slot in enumerate(slots.tolist()):
            what = self.now[slot]
            assert what is not None
            assert not self.over[slot]
            script = self.scripts.get(what.index, Script())
            for c in range(int(limits[row])):
                self.steps[slot] += 1
                k = int(self.steps[slot])
                out.reward[row, c] = k + actions[row, c, 0]
                out.success[row, c] = k in script.succeeds
                out.state[row, c] = what.index, k
                if k == script.ends:
                    out.terminated[row, c] = self.over[slot] = True
                    break
        return out

    def observe(self, slots: Slots, out: Observation) -> None:
        for slot in slots.tolist():
            what = self.now[slot]
            assert what is not None
            out.frames[slot] = what.index
            out.proprioception[slot] = out.state[slot] = (what.index, self.steps[slot])

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        return np.stack([np.full((size, size, 3), self.steps[slot], np.uint8) for slot in slots])

    def close(self) -> None:
        self.closed = True


class DelayedSimulator(FakeSimulator):
    """Takes up to a millisecond for a chunk, by chance, in any order of lanes; trouble comes when it is asked for.

    `trouble` of a scenario's index, in a step or (with `reset-` before it) in its reset: `raise`, `refuse` (an error
    that is the user's to mend), `hang` or `die`. With a folder `once`, it comes once for each scenario, whatever the
    process; `after` is the control step from which on it comes.
    """

    def __init__(
        self, slots: int, scripts=None, horizon: int = 10, delays: int = 0, trouble=None, once=None, after: int = 0
    ) -> None:
        super().__init__(slots, scripts, horizon)
        self.delays = np.random.default_rng([delays, slots]) if delays else None
        self.trouble = trouble or {}
        self.once = once
        self.after = after

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        for what in scenarios:
            self._make_trouble(what, "reset-")
        super().reset(slots, scenarios)

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        if self.delays is not None:
            time.sleep(self.delays.random() * 1e-3)
        for slot in slots.tolist():
            what = self.now[slot]
            if what is not None and self.steps[slot] >= self.after:
                self._make_trouble(what, "")
        return super().step(slots, actions, limits)

    def _make_trouble(self, what: Scenario, where: str) -> None:
        kind = self.trouble.get(what.index, "")
        if kind.rpartition("-")[0] != where.rstrip("-"):
            return
        if self.once is not None:
            try:
                (Path(self.once) / str(what.index)).touch(exist_ok=False)
            except FileExistsError:
                return
        kind = kind.rpartition("-")[2]
        if kind == "raise":
            raise ValueError("a bolt is loose")
        if kind == "refuse":
            raise SimulatorError("no such cube")
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(60)


class WordingSimulator(DelayedSimulator):
    """Its scenes say which arm is nearer, which its scenarios do not."""

    def wording(self, slot: int) -> str:
        what = self.now[slot]
        assert what is not None
        return f"{what.instruction} with the {('left', 'right')[what.index % 2]} arm"


class CautionedSimulator(FakeSimulator):
    """Its physics are not the published ones."""

    def __init__(self, slots: int, horizon: int = 10, threads: int = 1) -> None:
        super().__init__(slots, horizon=horizon)
        self.spec = replace(self.spec, cautions=("fake: physics of another version",))

    def observe(self, slots: Slots, out: Observation) -> None:
        super().observe(slots, out)
        out.frames[slots, :, 0] = 255


class SettlingSimulator(FakeSimulator):
    """Two tasks in turn. In state i of task 1 the cup slides i + 2.5 cm; a ball slides 0.2 cm in each state."""

    physics = "Fake 1.0"

    def __init__(self, slots: int, horizon: int = 10, threads: int = 1) -> None:
        super().__init__(slots, horizon=horizon)

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        both = [replace(scenario(i, suite, split), task=f"task{i % 2}") for i in range(6)]
        return both if split == "train" else both[:2]

    def settling(self, scenario: Scenario) -> dict[str, float]:
        state, task = divmod(scenario.index, 2)
        return {"cup": task * (state + 2.5) / 100, "ball": 0.002}


class TeachingSimulator(DelayedSimulator):
    """Its expert acts by what the slot plays: (index, steps so far)."""

    def expert(self, seed: int, *, miss_probability: float = 0.0) -> "FakeExpert":
        return FakeExpert(self)

    def vocabulary(self) -> Sequence[str]:
        return ["do or 0 1 2 3 4 5 6 7 8 9"]


@dataclass
class FakeExpert:
    simulator: FakeSimulator

    def act(self, slots: Slots) -> NDArray[np.float32]:
        scenarios = [self.simulator.now[slot] for slot in slots.tolist()]
        rows = [(what.index, self.simulator.steps[slot]) for slot, what in zip(slots, scenarios, strict=True) if what]
        return np.array(rows, np.float32)


class LibraryLoop:
    """The loop of a library, which counts hundreds of steps; see `benchmarks.bare.BareLoop`."""

    def __init__(self, simulator: FakeSimulator, scenario: Scenario) -> None:
        self.simulator = simulator
        simulator.reset(np.arange(1), [scenario])

    def play(self, actions: NDArray[np.float32]) -> None:
        self.simulator.steps[0] += 100 * len(actions)

    def close(self) -> None:
        self.simulator.steps[0] = 0


class AllocatingSimulator(FakeSimulator):
    """Takes memory for every frame from the C library, writes to it and gives it back, as a software renderer does:
    36 MB in a thread, 100 MB in the one that asks. From frame to frame the thread also keeps 4 MB, so that its frames
    lie now within a heap of the library and now across the end of one.
    """

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.library = ctypes.CDLL("libc.so.6")
        self.library.malloc.restype = ctypes.c_void_p
        self.library.free.argtypes = [ctypes.c_void_p]
        self.library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self.thread = ThreadPoolExecutor(1)

    def observe(self, slots: Slots, out: Observation) -> None:
        super().observe(slots, out)
        self.draw(112)
        self.thread.submit(self.draw, 40).result()
        self.thread.submit(self.take, 4).result()

    def draw(self, pieces: int) -> None:
        for address in self.take(pieces):
            self.library.free(address)

    def take(self, pieces: int) -> list[int]:
        size = 900_000
        addresses = [self.library.malloc(size) for _ in range(pieces)]
        for address in addresses:
            self.library.memset(address, 1, size)
        return addresses


class FamilySimulator(DelayedSimulator):
    """It has processes of its own, one forked and one started, and notes their numbers in the folder `family`."""

    def __init__(self, slots: int, *, family: str, **settings: Any) -> None:
        super().__init__(slots, **settings)
        forked = os.fork()
        if not forked:
            time.sleep(600)
            os._exit(0)
        started = subprocess.Popen(["sleep", "600"], close_fds=False)
        for number in (forked, started.pid):
            (Path(family) / str(number)).touch()
