"""Success of ManiSkill's scripted experts through Treadle's host, and of what they did there once more, played to
ManiSkill called directly; in the simulator's own environment, without frames:

    ENVIRONMENT/bin/python -m benchmarks.check_maniskill [--count N] [--json FILE]

with PYTHONPATH=src and the variables in the environment's treadle.json (VK_ICD_FILENAMES, LD_LIBRARY_PATH).
"""

import argparse
import json
from pathlib import Path

import gymnasium
import numpy as np
import torch

from benchmarks.output import write_record
from treadle.data.scenario import Scenario
from treadle.simulators.host import Host
from treadle.simulators.maniskill import ManiSkill

TASKS = ("PickCube-v1", "PushCube-v1", "StackCube-v1")
HORIZON = 80


def play_directly(task: str, scenario: Scenario, actions: np.ndarray) -> bool:
    """Whether ManiSkill's own environment ever finds success; actions [n, 7] as the policy gives them."""
    environment = gymnasium.make(
        task, obs_mode="state", control_mode="pd_ee_delta_pose", sim_backend="physx_cpu", max_episode_steps=HORIZON + 1
    )
    environment.reset(seed=2 * scenario.index)  # of the training split
    success = False
    for action in actions:
        # The controller takes shares of its limits, turns the other way round, and -1 or 1 for the gripper.
        command = np.r_[action[:3] / 0.1, action[3:6] / -0.1, 1.0 if action[6] > 0.5 else -1.0]
        *_, info = environment.step(torch.from_numpy(command.astype(np.float32)))
        success |= bool(info["success"])
    environment.close()
    return success


def check(task: str, count: int) -> dict[str, object]:
    """The first `count` scenarios of the training split."""
    simulator = ManiSkill(1, horizon=HORIZON, task=task)
    simulator.observe = lambda slots, out: None  # noqa: ARG005
    upcoming = iter(simulator.scenarios("train", "train")[:count])
    host = Host(simulator, lambda _: next(upcoming, None), HORIZON)
    expert, rows, played = simulator.expert(0), [], []
    host.start()
    while len(host.playing):
        played.append(expert.act(np.arange(1))[0])
        for episode in host.step(played[-1][None, None]).episodes:
            alone = play_directly(task, episode.scenario, np.stack(played))
            rows.append([episode.scenario.id, episode.success_once, alone, episode.length])
            print(*rows[-1], flush=True)
            played = []
    simulator.close()
    through, directly = (sum(row[i] for row in rows) for i in (1, 2))
    return {"task": task, "episodes": len(rows), "successes": through, "successes_directly": directly, "rows": rows}


def main() -> None:
    """Check all tasks and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures = {"tasks": [check(task, chosen.count) for task in TASKS]}
    print(json.dumps(write_record(chosen.json, "maniskill experts", figures, ("mani_skill", "sapien")), indent=2))


if __name__ == "__main__":
    main()
