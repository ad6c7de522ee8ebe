"""A film of one scenario, played by the expert that a simulator brings."""

from pathlib import Path

import numpy as np

from treadle.config.schema import SimulatorConfig
from treadle.errors import ConfigError
from treadle.reporting.video import caption, write_video
from treadle.simulators.build import build_simulator
from treadle.simulators.protocol import Teacher


def film_expert(name: str, suite: str, index: int, video: Path, size: int = 384) -> tuple[str, bool, int]:
    """Film the expert on one evaluation scenario; returns its instruction, success, and control steps.

    Raises ConfigError where the simulator is no `Teacher`, or has no such suite or scenario.
    """
    simulator = build_simulator(SimulatorConfig(name=name, slots=1))
    try:
        if not isinstance(simulator, Teacher):
            raise ConfigError(f"simulator {name!r} brings no expert to film: its class lacks `expert` and `vocabulary`")
        scenarios = simulator.scenarios(suite, "evaluation")
        if not 0 <= index < len(scenarios):
            raise ConfigError(f"--index: found {index}, allowed is 0 to {len(scenarios) - 1} in suite {suite!r}")
        scenario = scenarios[index]
        slots, one = np.zeros(1, np.intp), np.ones(1, np.intp)
        simulator.reset(slots, [scenario])
        expert = simulator.expert(index)
        frames = [simulator.render(slots, size)[0]]
        succeeded = ended = False
        while not ended and len(frames) <= simulator.spec.horizon:
            outcome = simulator.step(slots, expert.act(slots)[:, None], one)
            frames.append(simulator.render(slots, size)[0])
            succeeded, ended = succeeded or bool(outcome.success[0, 0]), bool(outcome.terminated[0, 0])
    finally:
        simulator.close()
    film = caption(np.stack(frames), scenario.instruction, succeeded)
    write_video(video, film, simulator.spec.control_hz)
    return scenario.instruction, succeeded, len(frames) - 1
