"""Videos of the expert, for people."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from treadle.data.scenario import Split
from treadle.simulators.tabletop.expert import Expert
from treadle.simulators.tabletop.simulator import Tabletop


def record_expert(
    path: Path, *, suite: str = "train", split: Split = "train", episodes: int = 6, size: int = 256, rate: int = 10
) -> list[bool]:
    """Write an mp4 of the expert's first `episodes` episodes of a suite, one after another; return their successes.

    `rate` frames a second, one a control step; the simulated robot acts twice as fast as the default shows.
    """
    simulator = Tabletop(episodes)
    slots = np.arange(episodes)
    simulator.reset(slots, simulator.scenarios(suite, split)[:episodes])
    expert = Expert(simulator, 0)
    films = [[frame] for frame in simulator.render(slots, size)]
    success = np.zeros(episodes, np.bool_)
    for _ in range(simulator.spec.horizon):
        live = slots[~success]
        if not len(live):
            break
        outcome = simulator.step(live, expert.act(live)[:, None], np.ones(len(live), np.intp))
        for slot, frame in zip(live.tolist(), simulator.render(live, size), strict=True):
            films[slot].append(frame)
        success[live] = outcome.success[:, 0]
    simulator.close()
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(rate), options={"crf": "18"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for film in films:
            for picture in [*film, *[film[-1]] * (rate // 2)]:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return success.tolist()
