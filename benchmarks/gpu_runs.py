"""Checks of `benchmarks.gpu`: the machine, tests, whole runs, rates and simulators."""

import re
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.gpu_task import SkippedError, Task
from benchmarks.output import ROOT
from treadle.config.loading import load_recipe
from treadle.config.on_policy import OnPolicyConfig
from treadle.errors import SimulatorError
from treadle.reporting.metrics import read_metrics
from treadle.simulators.build import simulator_environment

TESTS = ("tests/test_devices.py", "tests/test_gpu.py")
"""Those that compute on a GPU where there is one."""
SIMULATORS = ("maniskill", "libero")
SIMULATOR_SECONDS = 28.0
"""For each."""
KEPT = ("rollout/success", "rollout/return", "update/log_prob_gap", "update/log_prob_gap_mean", "update/gradient_norm")
"""Metrics of each iteration that are noted beside its times."""


def machine(task: Task) -> str:
    """What the doctor says of devices."""
    from treadle.doctor import examine_devices

    checks = {check.name: check for check in examine_devices()}
    task.note(**{name: check.detail for name, check in checks.items()})
    if task.cpu:
        return "; ".join(f"{name} {check.state}" for name, check in checks.items())
    import torch

    task.note(gpus=", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    for name in ("CUDA", "NCCL", "FSDP2"):
        task.require(checks[name].state == "works", f"{name}: {checks[name].detail}; {checks[name].fix}")
    return checks["CUDA"].detail


def tests(task: Task) -> str:
    """The tests that compute on a GPU, by pytest."""
    for package in ("pytest", "hypothesis"):
        if find_spec(package) is None:
            raise SkippedError(f"{package} is not installed; pip install -c constraints.txt pytest hypothesis")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, file=sys.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "pytest said nothing"
    task.note(**{word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)})
    task.require(done.returncode == 0, last)
    return last


def quickstart(task: Task) -> str:
    """The quickstart in one process, a few iterations."""
    return _summary(task, _train(task, "quickstart"))


def ray(task: Task) -> str:
    """The same over Ray: one member with a player and a rank, on a cluster that is there already. Its first rollout is
    the one of `quickstart`.
    """
    if find_spec("ray") is None:
        raise SkippedError("Ray is not installed; pip install -c constraints.txt 'treadle[ray]'")
    from treadle.runtime.cluster.session import prepare_ray

    prepare_ray()
    with tempfile.TemporaryDirectory(prefix="treadle-") as folder:
        node = {"num_cpus": 1, "num_gpus": int(not task.cpu), "include_dashboard": False, "temp_dir": folder}
        cluster = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=node)
        try:
            rows = _train(task, "ray", f"runtime.address={cluster.address}", "runtime.timeout=40")
        finally:
            import_module("ray").shutdown()
            cluster.shutdown()
    said = _summary(task, rows)
    if (alone := task.folder / "quickstart").exists():
        returns = [found[0]["rollout/return"] for found in (rows, read_metrics(alone))]
        task.note(first_returns=returns)
        # The actions are the same but for rounding, which may change one here and there.
        task.require(abs(returns[0] - returns[1]) <= 0.05 * max(1.0, abs(returns[1])), f"first returns are {returns}")
        said += ", first rollout as without Ray"
    return said


def rates(task: Task) -> str:
    """Decisions and training samples per second, beside the plain path and the floor."""
    from benchmarks import policy

    rows = policy.run(
        None,
        policies=["openvla_oft"],
        sizes=[task.size],
        batches=[1] if task.cpu else [1, 16],
        training_batches=[1],
        device=str(task.device),
        seconds=0.0 if task.cpu else 0.5,
        limit=25.0,
    )
    task.note(rows=[asdict(row) for row in rows])
    task.require(bool(rows), "no row was done in time")
    last = rows[-1]
    return (
        f"{last.decisions_per_second:.3g} decisions/s at batch {last.batch}, {last.ratio:.2f}x the plain path, "
        f"{last.floor_share:.0%} of the floor"
    )


def simulators(task: Task) -> str:
    """Steps and frames of the simulators that are installed."""
    from benchmarks.gpu_simulators import in_its_environment

    given = Namespace(
        device=task.device.type,
        task="PickCube-v1",
        chunks=1 if task.cpu else 2,
        slots=[1] if task.cpu else [16, 128, 512],
        limit=SIMULATOR_SECONDS,
    )
    said: list[str] = []
    failed: list[str] = []
    for name in SIMULATORS:
        try:
            environment = simulator_environment(name)
            assert environment is not None
            environment.interpreter()
        except SimulatorError as reason:
            said.append(f"{name} is not installed")
            task.note(**{name: {"skipped": str(reason)}})
            continue
        result: dict[str, Any] = in_its_environment(name, given)
        task.note(**{name: result})
        said.append(f"{name} {len(result['rows'])} rows")
        # One that meets its limit has said what it could by then.
        if "error" in result and not result["rows"]:
            failed.append(f"{name}: {result['error']}")
    task.require(not failed, "; ".join(failed))
    if all(text.endswith("not installed") for text in said):
        raise SkippedError("; ".join(said))
    return "; ".join(said)


def _train(task: Task, name: str, *settings: str) -> list[dict[str, float]]:
    """The metrics of a short quickstart."""
    from treadle.runtime import loop

    slots, episodes = (8, 2) if task.cpu else (64, 64)
    config = load_recipe(
        "quickstart",
        [
            f"name={name}",
            f"output={task.folder}",
            f"device={task.device}",
            "iterations=3",
            "save_every=0",
            f"simulator.slots={slots}",
            'evaluation.suites=["train"]',
            f"evaluation.episodes={episodes}",
            f"evaluation.slots={slots}",
            "evaluation.videos=0",
            f"torch_threads={int(task.cpu)}",
            *settings,
        ],
    )
    rows = read_metrics(loop.train(config))
    times = [{k: x for k, x in row.items() if k in KEPT or k.startswith("time/")} for row in rows]
    assert isinstance(config.algorithm, OnPolicyConfig)
    task.note(iterations=times, log_prob_alarm=config.algorithm.log_prob_alarm)
    return rows


def _summary(task: Task, rows: list[dict[str, float]]) -> str:
    """Seconds and the log-prob gap, which must stay below the recipe's alarm."""
    gaps = [row["update/log_prob_gap_mean"] for row in rows if "update/log_prob_gap_mean" in row]
    task.require(bool(gaps), "no iteration has a log-prob gap")
    alarm = task.figures["log_prob_alarm"]
    task.require(max(gaps) <= alarm, f"log-probs of rollout and trainer differ by {max(gaps):.3g} nats in the mean")
    return f"{rows[-1]['time/iteration']:.2f} s an iteration, log-prob gap {max(gaps):.1e} nats in the mean"
