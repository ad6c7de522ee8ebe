"""Simulators on one GPU, in one call of under ten minutes: `python -m benchmarks.gpu_simulators`.

ManiSkill steps and renders 16 to 512 slots in one process with PhysX on CUDA, through the host; frames are timed as
they reach the host's arrays and as they stay on the device. LIBERO renders through EGL. Each part runs in the
environment of its simulator, as a process of its own, and ends at its limit. `--device cpu` goes through the same on
any machine, with one environment per slot and software renderers. Writes
`benchmarks/results/simulators-<device>.json`, or what `--json` names.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.output import RESULTS, ROOT, write_record

CHUNK = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 128, 256, 512])
    parser.add_argument("--task", default="PickCube-v1", help="of ManiSkill")
    parser.add_argument("--chunks", type=int, default=4, help=f"of {CHUNK} actions, in each measurement")
    parser.add_argument("--simulators", nargs="+", default=["maniskill", "libero"])
    parser.add_argument("--limit", type=float, default=270.0, help="seconds for each simulator")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a simulator's own interpreter is asked for
    given = parser.parse_args()
    if given.measure:
        return measure(given)
    results = {name: in_its_environment(name, given) for name in given.simulators}
    file = given.json or RESULTS / f"simulators-{given.device}.json"
    write_record(file, "simulators", {"results": results})
    print(json.dumps(results, indent=1))
    return int(any("error" in result for result in results.values()))


def in_its_environment(name: str, given: argparse.Namespace) -> dict[str, object]:
    """Run `--measure NAME` with the interpreter and variables of the simulator's environment."""
    from treadle.simulators.build import simulator_environment

    environment = simulator_environment(name)
    if environment is None:
        return {"error": f"{name} has no environment"}
    interpreter = environment.interpreter()
    variables = dict(interpreter.variables)
    if given.device == "cuda":  # leave the software renderers that were set up where there was no GPU
        for variable in ("VK_ICD_FILENAMES", "LD_LIBRARY_PATH"):
            variables.pop(variable, None)
        variables["MUJOCO_GL"] = "egl"
    command = [interpreter.python, "-m", "benchmarks.gpu_simulators", "--measure", name]
    command += ["--device", given.device, "--task", given.task]
    command += ["--chunks", str(given.chunks), "--slots", *map(str, given.slots)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
            timeout=given.limit,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        done_text = error.stdout.decode() if isinstance(error.stdout, bytes) else (error.stdout or "")
        return {"error": f"not done after {given.limit:.0f} s", "rows": rows_of(done_text)}
    result: dict[str, object] = {"rows": rows_of(done.stdout)}
    if done.returncode:
        result["error"] = done.stderr[-2000:]
    return result


def rows_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def measure(given: argparse.Namespace) -> int:
    """A line of JSON for each number of slots."""
    for slots in given.slots if given.measure == "maniskill" else [min(given.slots[0], 2)]:
        print(json.dumps(rates(given, slots)), flush=True)
    return 0


def rates(given: argparse.Namespace, slots: int) -> dict[str, object]:
    import numpy as np

    from treadle.simulators.host import Host

    simulator: Any
    if given.measure == "maniskill":
        from treadle.simulators.maniskill import ManiSkill

        simulator = ManiSkill(slots, horizon=10**6, task=given.task, device=given.device, reward="dense")
    else:
        from treadle.simulators.libero import Libero

        simulator = Libero(slots, horizon=10**6)
    began = time.perf_counter()
    try:
        upcoming = iter(simulator.scenarios(simulator.suites()[0], "train")[:slots])
        host = Host(simulator, lambda _: next(upcoming, None), 10**4)
        host.start()
        row: dict[str, object] = {"simulator": given.measure, "slots": slots, "start_s": time.perf_counter() - began}
        actions = np.zeros((slots, CHUNK, simulator.spec.action_dim), np.float32)
        began = time.perf_counter()
        for _ in range(given.chunks):
            host.step(actions)
        seconds = time.perf_counter() - began
        row["control_steps_per_second"] = slots * CHUNK * given.chunks / seconds
        began = time.perf_counter()
        for _ in range(given.chunks):
            simulator.observe(np.arange(slots), host.observation)
        row["frames_per_second_to_the_host"] = slots * given.chunks / (time.perf_counter() - began)
        if given.measure == "maniskill":
            began = time.perf_counter()
            frames = [simulator.device_frames(simulator.spec.cameras[0]) for _ in range(given.chunks)][-1]
            row["frames_per_second_on_the_device"] = slots * given.chunks / (time.perf_counter() - began)
            row["frames"] = [list(frames.shape), str(frames.device)]
        return row
    finally:
        simulator.close()


if __name__ == "__main__":
    sys.exit(main())
