"""Demonstrations: played by a simulator's scripted expert, and cut into decisions for imitation.

Shapes: N frames of all episodes, C actions of a chunk, A action dimensions.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treadle.config.schema import DemonstrationConfig
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.simulators.host import Host, one_after_another
from treadle.simulators.protocol import Expert, Simulator


def record_demonstrations(
    simulator: Simulator,
    expert: Expert,
    config: DemonstrationConfig,
    directory: Path,
    progress: Callable[[int, int], None],
) -> float:
    """Play the expert on the first training scenarios and write its successes as a LeRobot dataset; returns its
    success rate. Episodes are written in the order of their scenarios.
    """
    spec = simulator.spec
    scenarios = simulator.scenarios("train", "train")[: config.episodes]
    host = Host(simulator, one_after_another(scenarios), spec.horizon)
    observation = host.start()
    tracks: dict[int, list[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]]] = {}
    finished = {}
    noise = np.random.default_rng(config.seed)
    actions = np.zeros((simulator.slots, 1, spec.action_dim), np.float32)
    while len(slots := host.playing):
        actions[slots, 0] = expert.act(slots)
        playing = host.scenarios
        for slot in slots.tolist():
            scenario = playing[slot]
            assert scenario is not None
            moment = (observation.frames[slot].copy(), observation.proprioception[slot].copy(), actions[slot, 0].copy())
            tracks.setdefault(scenario.index, []).append(moment)
        played = actions.copy()
        played[slots, 0, :3] += noise.normal(0, config.jitter, (len(slots), 3))
        for result in host.step(played).episodes:
            finished[result.scenario.index] = result
        progress(len(finished), len(scenarios))
    with DemonstrationWriter(
        directory,
        fps=spec.control_hz,
        cameras=spec.cameras,
        height=spec.height,
        width=spec.width,
        action_names=action_names(spec.action_dim),
        state_names=[f"p{i}" for i in range(spec.proprioception_dim)],
        robot_type=spec.name,
    ) as writer:
        for scenario in scenarios:
            if finished[scenario.index].success_once:
                frames, proprioception, played = (np.stack(x) for x in zip(*tracks[scenario.index], strict=True))
                writer.add_episode(frames, proprioception, played, scenario.instruction, True, scenario.id)
    return sum(result.success_once for result in finished.values()) / len(finished)


def action_names(count: int) -> list[str]:
    """Names of action dimensions in the data set."""
    return ["x", "y", "z", "roll", "pitch", "yaw", "gripper"] if count == 7 else [f"a{i}" for i in range(count)]


def cut_chunks(actions: NDArray[np.float32], episode: NDArray[np.int64], chunk: int) -> NDArray[np.float32]:
    """The chunk [N, C, A] that starts at each frame of `actions` [N, A].

    Past the end of an episode the robot stands still: motions are 0, the last dimension (the gripper) stays.
    """
    count = len(actions)
    rows = np.arange(count)[:, None] + np.arange(chunk)
    last = np.searchsorted(episode, episode, side="right") - 1
    over = rows > last[:, None]
    chunks = actions[np.minimum(rows, last[:, None])]
    chunks[..., :-1][over] = 0
    return chunks
