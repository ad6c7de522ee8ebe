"""Simulators at play, in the ways that `treadle bench simulator` compares.

Shapes: B slots, C control steps per decision, A action dimensions.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.benchmarks.timing import time_rounds
from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.data.observation import Observation
from treadle.data.scenario import Scenario
from treadle.policies.protocol import Policy, Sampling
from treadle.rollout.build import plan_lanes
from treadle.rollout.lanes import Lanes
from treadle.simulators.bare import bare_loop
from treadle.simulators.build import build_simulator
from treadle.simulators.host import Host
from treadle.simulators.protocol import Simulator

CHUNK = 4
"""Control steps between two frames where a frame is drawn per decision."""
STEPS = 8
"""Control steps of one round with frames, from a reset on; a multiple of CHUNK."""
LONGER = 4
"""So many times STEPS are in a round without frames, and in one of lanes."""
NEVER = 10**9
_LONG = 10**5
"""Control steps that no benchmark reaches, where what is kept grows with them."""


class Loops:
    """Bare loops in processes that know nothing of each other."""

    def __init__(self, config: SimulatorConfig, count: int) -> None:
        one = config.model_copy(update={"slots": 1, "processes": 1})
        with ExitStack() as opened:
            simulators = [opened.enter_context(closing(build_simulator(one))) for _ in range(count)]
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


class InLanes:
    """A simulator of which each process has a lane, as training has them, without a policy."""

    def __init__(self, config: SimulatorConfig) -> None:
        count = config.processes or 1
        plan = plan_lanes(
            config.model_copy(update={"horizon": _LONG}),
            CollectionConfig(lanes=count, workers=count),
            {"seed": 0, "group_size": config.slots},
            "none",
            accelerated=False,
        )
        self._lanes = Lanes(plan, CHUNK)
        motion = small_motions(1, self._lanes.spec.action_dim)[:, :CHUNK]
        # There and back, for no episode ends on the way.
        self._decisions = [motion, -motion] * (LONGER * STEPS // CHUNK // 2)
        self._lanes.start()
        begun = 0
        while begun < count:
            begun += len(self._lanes.ready(count))

    def play(self) -> None:
        """LONGER times STEPS control steps of each slot, with a frame after each CHUNK."""
        lanes = self._lanes
        coming = [iter(self._decisions) for _ in lanes.rows]
        idle, busy = list(range(len(lanes))), 0
        while idle:
            for lane in idle:
                if (actions := next(coming[lane], None)) is not None:
                    lanes.board.actions[lanes.rows[lane]] = actions
                    lanes.play(lane)
                    busy += 1
            idle = [arrival.lane for arrival in lanes.ready(busy)] if busy else []
            busy -= len(idle)

    def close(self) -> None:
        """End the workers."""
        self._lanes.close()


class Playing:
    """A simulator whose slots all play."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._simulator = build_simulator(config)
        self._threads = config.threads or 1
        scenario = first_scenario(self._simulator)
        self._host = Host(self._simulator, lambda _: scenario, NEVER)
        self._slots = np.arange(config.slots)
        self._actions = small_motions(config.slots, self._simulator.spec.action_dim)

    def reset(self) -> None:
        """Put all slots at the start of their scenarios."""
        self._host.start()

    def play(self, chunk: int) -> None:
        """STEPS control steps through the host, with a frame after each `chunk`."""
        for start in range(0, STEPS, chunk):
            self._host.step(self._actions[:, start : start + chunk])

    def play_unseen(self) -> None:
        """LONGER times STEPS control steps without frames, which a host always asks for."""
        limits = np.full(len(self._slots), STEPS, np.intp)
        for _ in range(LONGER):
            self._simulator.step(self._slots, self._actions, limits)

    def forward(self, policy: Policy | None, seconds: float) -> float | None:
        """Seconds of one decision for all slots."""
        return None if policy is None else _forward(policy, self._host.observation, self._threads, seconds)

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()


def first_scenario(simulator: Simulator) -> Scenario:
    """What every slot plays, so that all have the same to do."""
    return simulator.scenarios(simulator.suites()[0], "evaluation")[0]


def small_motions(slots: int, action_dim: int) -> NDArray[np.float32]:
    """Random actions [slots, STEPS, A] that solve nothing, so that every slot plays every step; the same for all of
    them, for what a motion leads to has a cost too.
    """
    motion = np.random.default_rng(0).normal(0, 0.01, (1, STEPS, action_dim)).astype(np.float32)
    return np.repeat(motion, slots, axis=0)


def _forward(policy: Policy, seen: Observation, threads: int, seconds: float) -> float:
    torch.set_num_threads(threads)
    sampling = Sampling()

    def decide() -> None:
        policy.act(policy.prepare(seen.frames, seen.instructions, seen.proprioception), sampling)

    return float(np.median(time_rounds(decide, seconds)))
