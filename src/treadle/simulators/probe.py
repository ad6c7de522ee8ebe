"""Whether a simulator works here; the doctor runs `python -m treadle.simulators.probe NAME` as its own process."""

import json
import sys

import numpy as np

from treadle.config.schema import SimulatorConfig
from treadle.data.observation import Observation
from treadle.errors import SimulatorError, TreadleError
from treadle.simulators.build import build_simulator


def probe(name: str) -> str:
    """Build a slot where the simulator lives, reset it, look at it and play one action; returns what was found.

    Raises SimulatorError where a frame is of one colour, and whatever the simulator raises.
    """
    simulator = build_simulator(SimulatorConfig(name=name, slots=1))
    try:
        spec, suites = simulator.spec, simulator.suites()
        slots = np.arange(1)
        simulator.reset(slots, simulator.scenarios(suites[0], "evaluation")[:1])
        seen = Observation.empty(1, len(spec.cameras), spec.height, spec.width, spec.proprioception_dim, spec.state_dim)
        simulator.observe(slots, seen)
        if seen.frames.std() == 0:
            raise SimulatorError(f"simulator {name!r} draws frames of one colour; look at its renderer")
        simulator.step(slots, np.zeros((1, 1, spec.action_dim), np.float32), np.ones(1, np.intp))
        return f"{len(suites)} suites, frames {spec.height} x {spec.width} from {', '.join(spec.cameras)}"
    finally:
        simulator.close()


if __name__ == "__main__":
    try:
        found = probe(sys.argv[1])
    except TreadleError as error:
        # The last line on stderr is what the doctor shows.
        sys.exit(" ".join(str(error).split()))
    sys.stdout.write(json.dumps({"detail": found}) + "\n")
