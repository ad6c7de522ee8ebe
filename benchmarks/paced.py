"""A simulator that does nothing but take a given time, to measure what is around it. Imports numpy alone.

Shapes: n slots addressed, C actions of a chunk.
"""

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treadle.data.observation import Observation
from treadle.data.scenario import Scenario, Split
from treadle.data.step import Outcome
from treadle.errors import ConfigError
from treadle.simulators.protocol import ActionDimension, SimulatorSpec, Slots

ACTIONS, PROPRIOCEPTION = 2, 16
SLOWER = 5.0
"""How much longer a straggler's chunk takes."""


def spin(seconds: float) -> None:
    """Keep a core busy, as computing would."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class PacedSimulator:
    """Every chunk of a slot takes `seconds`; episodes end at their horizon alone.

    Args:
        slots: how many.
        horizon: control steps of an episode.
        threads: not used.
        image_size: side of its one camera's frames, which are written anew for every observation.
        seconds: for a chunk of one slot; slots take their turns.
        wait: `spin` keeps the core busy, `sleep` waits as for a device of its own.
        stragglers: share of chunks, drawn by chance for all slots of a call together, that take five times as long.
    """

    def __init__(
        self,
        slots: int,
        *,
        horizon: int,
        threads: int = 1,
        image_size: int = 1,
        seconds: float = 0.0,
        wait: Literal["spin", "sleep"] = "spin",
        stragglers: float = 0.0,
    ) -> None:
        self.slots = slots
        self.spec = SimulatorSpec(
            name="paced",
            cameras=("front",),
            height=image_size,
            width=image_size,
            actions=tuple(ActionDimension(f"a{i}", "absolute") for i in range(ACTIONS)),
            proprioception_dim=PROPRIOCEPTION,
            state_dim=0,
            horizon=horizon,
            control_hz=10.0,
        )
        self._seconds = seconds
        self._pause = {"spin": spin, "sleep": time.sleep}[wait]
        self._stragglers = stragglers
        self._index = np.zeros(slots, np.int64)
        self._steps = np.zeros(slots, np.int64)
        self._calls = 0

    def suites(self) -> tuple[str, ...]:
        """`train` alone."""
        return ("train",)

    def scenarios(self, suite: str, split: Split) -> Sequence[Scenario]:
        """A thousand that differ in their index alone. Raises ConfigError for another suite."""
        if suite != "train":
            raise ConfigError(f"paced has no suite {suite!r}; suites: train")
        return [Scenario("paced", suite, "wait", split, index, "wait") for index in range(1000)]

    def instructions(self, scenario: Scenario) -> Sequence[str]:
        """The one that there is."""
        return [scenario.instruction]

    def reset(self, slots: Slots, scenarios: Sequence[Scenario]) -> None:
        """Note the scenarios."""
        self._index[slots] = [scenario.index for scenario in scenarios]
        self._steps[slots] = 0

    def step(self, slots: Slots, actions: NDArray[np.float32], limits: NDArray[np.intp]) -> Outcome:
        """Take the time of a chunk; the reward of each action is its first number."""
        self._calls += 1
        if self._seconds:
            # Belongs to what is played, not to when: the same in any order of lanes.
            chance = np.random.Generator(np.random.Philox(key=[int(self._index[slots[0]]), self._calls])).random()
            self._pause(self._seconds * len(slots) * (SLOWER if chance < self._stragglers else 1.0))
        self._steps[slots] += limits
        outcome = Outcome.empty(len(actions), actions.shape[1])
        outcome.reward[:] = actions[:, :, 0]
        return outcome

    def observe(self, slots: Slots, out: Observation) -> None:
        """Frames and proprioception that tell scenario and step."""
        out.frames[slots] = (self._steps[slots] % 256).astype(np.uint8)[:, None, None, None, None]
        out.proprioception[slots] = self._steps[slots, None]

    def render(self, slots: Slots, size: int) -> NDArray[np.uint8]:
        """Black."""
        return np.zeros((len(slots), size, size, 3), np.uint8)

    def close(self) -> None:
        """Nothing is held."""
