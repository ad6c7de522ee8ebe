"""A film of one scenario, played by the expert that a simulator brings."""

from pathlib import Path

import numpy as np

from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.errors import ConfigError
from treadle.reporting.video import caption, write_video
from treadle.rollout.sources import ScenarioList
from treadle.workers.crew import Crew, require_suite
from treadle.workers.lanes import Lanes
from treadle.workers.messages import ExpertSettings, Session
from treadle.workers.plan import plan_crew


def film_expert(name: str, suite: str, index: int, video: Path, size: int = 384) -> tuple[str, bool, int]:
    """Film the expert on one evaluation scenario; returns its instruction, success, and control steps.

    Raises ConfigError where the simulator is no `Teacher`, or has no such suite or scenario.
    """
    with Crew(plan_crew(SimulatorConfig(name=name, slots=1), CollectionConfig(), accelerated=False)) as crew:
        if not crew.teaches:
            raise ConfigError(f"simulator {name!r} brings no expert to film: its class lacks `expert` and `vocabulary`")
        require_suite(crew, "--suite", suite)
        count = crew.count(suite, "evaluation")
        if not 0 <= index < count:
            raise ConfigError(f"--index: found {index}, allowed is 0 to {count - 1} in suite {suite!r}")
        session = Session(crew.spec.horizon, film=size, expert=ExpertSettings(index))
        lanes = Lanes(crew, session, ScenarioList((suite, "evaluation"), [index], crew.rows), chunk=1)
        lanes.begin(0)
        frames = []
        while True:
            (arrival,) = lanes.ready(1)
            frames += [frame for _, frame in arrival.frames]
            if arrival.episodes:
                break
            lanes.play(0)
        (result,) = arrival.episodes
        film = caption(np.stack(frames), result.scenario.instruction, result.success_once)
        write_video(video, film, crew.spec.control_hz)
    return result.scenario.instruction, result.success_once, result.length
