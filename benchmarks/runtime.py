"""What a run costs beside simulating, generating and training, in one process and over Ray; and publishing weights."""

import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.output import make_table, write_record
from treadle.config.loading import load_recipe
from treadle.config.schema import TrainConfig
from treadle.cores import usable_cores
from treadle.reporting.metrics import read_metrics
from treadle.runtime.cluster.engine import Engine
from treadle.runtime.loop import train
from treadle.runtime.weights import Weights, load_state, trained_state

PLACEMENTS = {
    "one process": (),
    "player and rank, over Ray": ("placement.simulate=0", "placement.generate=0", "placement.train=1"),
    "two players and two ranks, over Ray": ("placement.players=2", "placement.ranks=2"),
}
SIZES = (10**8, 10**9)
"""Bytes of weights."""
_TENSORS = 100
_SKIPPED = 2
"""First iterations, which are not counted."""
_WORK = (
    "evaluation.suites=['train']",
    "evaluation.episodes=1",
    "evaluation.slots=1",
    "evaluation.videos=0",
    "torch_threads=1",
    "save_every=0",
)


@dataclass(frozen=True, slots=True)
class Cost:
    """One placement. Seconds are medians over iterations."""

    placement: str
    iteration: float
    collect: float
    """Simulating and generating."""
    update: float
    """Critic and policy."""
    outside: float
    """The rest of an iteration, writing metrics included."""
    start: float
    """From the command to the first rollout, base evaluation of one episode included; no median."""


@dataclass(frozen=True, slots=True)
class Publishing:
    """Weights from one process to another, over Ray. Seconds are medians."""

    megabytes: int
    copy: float
    """One copy from memory to memory."""
    publish: float
    """The trainer hands its weights over, which is a copy into shared memory."""
    receive: float
    """The player copies them into its policy."""

    @property
    def copies(self) -> float:
        """All of it, as a multiple of the copy."""
        return (self.publish + self.receive) / self.copy


def run(json: Path | None, iterations: int = 10, rounds: int = 7, slots: int = 64) -> None:
    """Measure, print tables and write JSON where asked. Raises TreadleError."""
    costs = [measure(name, overrides, iterations, slots) for name, overrides in PLACEMENTS.items()]
    published = publishing(rounds)
    times = make_table(
        "Seconds of an iteration", ["placement"], ["iteration", "collect", "update", "outside", "to the first rollout"]
    )
    for cost in costs:
        seconds = (cost.iteration, cost.collect, cost.update, cost.outside, cost.start)
        times.add_row(cost.placement, *(f"{x:.3f}" for x in seconds))
    weights = make_table("Publishing weights, in seconds", ["weights"], ["copy", "publish", "receive", "in copies"])
    for each in published:
        seconds = (each.copy, each.publish, each.receive)
        weights.add_row(f"{each.megabytes:,} MB", *(f"{x:.4f}" for x in seconds), f"{each.copies:.1f}")
    Console().print(times, weights)
    record = {
        "iterations": iterations,
        "slots": slots,
        "placements": [asdict(cost) for cost in costs],
        "publishing": [asdict(each) | {"copies": each.copies} for each in published],
    }
    write_record(json, "runtime", record)


def measure(name: str, overrides: tuple[str, ...], iterations: int, slots: int) -> Cost:
    """The quickstart's iterations in a placement. Raises TreadleError."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"output={folder}", f"iterations={iterations}", f"simulator.slots={slots}", *_WORK, *overrides]
        config = load_recipe("quickstart", given, TrainConfig)
        began = time.perf_counter()
        rows = read_metrics(train(config))[_SKIPPED:]
        whole = time.perf_counter() - began

    def middle(*names: str) -> float:
        return median(sum(row.get(f"time/{part}", 0.0) for part in names) for row in rows)

    collect, update, iteration = middle("collect"), middle("critic", "update"), middle("iteration")
    outside = median(
        row["time/iteration"] - sum(row.get(f"time/{part}", 0.0) for part in ("collect", "critic", "update"))
        for row in rows
    )
    return Cost(name, iteration, collect, update, outside, whole - rows[-1]["seconds"])


class Holder:
    """A process that holds weights."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(0)
        count = size // 4 // _TENSORS
        self._module = nn.ParameterList([nn.Parameter(torch.ones(count)) for _ in range(_TENSORS)])

    def publish(self, version: int) -> tuple[None, Weights]:
        """As a trainer does."""
        return None, Weights(version, trained_state(self._module))

    def receive(self, weights: Weights) -> int:
        """As a player does."""
        assert weights.policy is not None
        load_state(self._module, weights.policy)
        return weights.version


def publishing(rounds: int) -> list[Publishing]:
    """Publish weights of each size, and copy as much. Raises TreadleError."""
    torch.set_num_threads(1)
    with Engine(TrainConfig(), "cpu", usable_cores()):
        ray: Any = import_module("ray")
        return [_publish(ray, size, rounds) for size in SIZES]


def _publish(ray: Any, size: int, rounds: int) -> Publishing:
    made = ray.remote(num_cpus=0)(Holder)
    trainer, player = made.remote(size), made.remote(size)
    source, target = torch.ones(size // 4), torch.ones(size // 4)
    seconds: list[tuple[float, float, float]] = []
    for version in range(rounds + 1):
        began = time.perf_counter()
        target.copy_(source)
        copied = time.perf_counter()
        done, weights = trainer.publish.options(num_returns=2).remote(version)
        ray.get(done)
        published = time.perf_counter()
        assert ray.get(player.receive.remote(weights)) == version
        seconds.append((copied - began, published - copied, time.perf_counter() - published))
        del weights
    for actor in (trainer, player):
        ray.kill(actor)
    # The first round waits for the processes, and touches memory for the first time.
    copy, publish, receive = (median(part) for part in zip(*seconds[1:], strict=True))
    return Publishing(size // 10**6, copy, publish, receive)
