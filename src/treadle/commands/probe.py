"""Whether a simulator works here; the doctor runs `python -m treadle.commands.probe NAME` as its own process."""

import json
import sys

from treadle.config.schema import CollectionConfig, SimulatorConfig
from treadle.errors import SimulatorError, TreadleError
from treadle.rollout.sources import ScenarioList
from treadle.workers.crew import Crew
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session
from treadle.workers.plan import plan_crew


def probe(name: str) -> str:
    """Build a slot where the simulator lives, begin a scenario, look at it and play one action; returns what was found.

    Raises SimulatorError where a frame is of one colour, and whatever the simulator raises.
    """
    with Crew(plan_crew(SimulatorConfig(name=name, slots=1), CollectionConfig(), accelerated=False)) as crew:
        spec = crew.spec
        source = ScenarioList((crew.suites[0], "evaluation"), [0], crew.rows)
        lanes = Lanes(crew, Session(spec.horizon), source, chunk=1)
        lanes.begin(0)
        lanes.ready(1)
        if lanes.buffer.observation.frames.std() == 0:
            raise SimulatorError(f"simulator {name!r} draws frames of one colour; look at its renderer")
        lanes.play(0)
        lanes.ready(1)
        count = len(crew.suites)
        found = f"{count} suite{'s' * (count != 1)}, frames {spec.height} x {spec.width} from {', '.join(spec.cameras)}"
        return "; ".join([found, *(f"but {caution}" for caution in spec.cautions)])


if __name__ == "__main__":
    try:
        found = probe(sys.argv[1])
    except TreadleError as error:
        # The last line on stderr is what the doctor shows.
        sys.exit(" ".join(str(error).split()))
    sys.stdout.write(json.dumps({"detail": found}) + "\n")
