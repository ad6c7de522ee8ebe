"""Runs that are interrupted at random points and resumed equal those that were left alone, bit by bit.

`python -m benchmarks.resumes --count 40 --seed 0`; a seed repeats one. PPO and GRPO, all weights and adapters, lanes 1
and 2, threads and processes, an average of weights, evaluations in between, playing beside training, extended runs; the
interruptions are Ctrl-C and crashes.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from typer import echo

from benchmarks.output import write_record
from treadle.config.loading import load_recipe
from treadle.policies.load import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.runtime.loop import train
from treadle.training.on_policy.ppo import PPO

ITERATIONS = 4
SMALL = (
    *("decisions=2", "device=cpu", "torch_threads=1", "simulator.slots=4", "simulator.horizon=8"),
    *("simulator.threads=1", "evaluation.episodes=2", "evaluation.slots=2", "evaluation.suites=['train']"),
    *("evaluation.videos=0", "algorithm.minibatch=8", "algorithm.micro_batch=8", "optimizer.final_share=1"),
)


class CrashError(Exception):
    """Stands for whatever ends a process."""


def draw(seed: int) -> tuple[list[str], list[str], int, bool]:
    """Settings, those of the first part alone, the iteration that is interrupted, and whether by Ctrl-C."""
    chosen = random.Random(seed)
    grpo = chosen.random() < 0.5
    settings = [f"seed={chosen.randrange(3)}", f"collection.lanes={chosen.choice((1, 2))}"]
    settings += ["algorithm.kind=grpo", "algorithm.group_size=2"] if grpo else ["critic.kind=privileged"]
    settings += ["policy.lora.rank=4"] if chosen.random() < 0.5 else []
    settings += ["optimizer.average=0.5"] if chosen.random() < 0.5 else []
    settings += ["collection.kind=processes"] if chosen.random() < 0.5 else []
    settings += ["evaluation.every=1"] if chosen.random() < 0.5 else []
    settings += ["overlap=async"] if chosen.random() < 0.25 else []
    first = ["iterations=3"] if chosen.random() < 0.25 else []
    return settings, first, chosen.randrange(1, ITERATIONS - bool(first)), chosen.random() < 0.5


def run(output: Path, *settings: str) -> Path:
    """A whole run, or as much of it as there is."""
    return train(
        load_recipe("quickstart", [*SMALL, f"iterations={ITERATIONS}", "save_every=1", f"output={output}", *settings])
    )


def interrupted(output: Path, at: int, by_hand: bool, *settings: str) -> None:
    """A run that ends in the middle of an iteration, or after it."""
    update = PPO.update

    def disturbed(self: PPO, rollouts: Any, iteration: int) -> dict[str, float]:
        if iteration == at:
            if not by_hand:
                raise CrashError
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, rollouts, iteration)

    with patch.object(PPO, "update", disturbed), suppress(CrashError, KeyboardInterrupt):
        run(output, *settings)


def same(one: Path, other: Path) -> bool:
    """Whether metrics, but for times, and final weights are equal."""
    skipped = ("time/", "speed/", "idle/", "seconds")
    rows = [
        [{key: x for key, x in row.items() if not key.startswith(skipped)} for row in read_metrics(folder)]
        for folder in (one, other)
    ]
    weights: list[dict[str, torch.Tensor]] = []
    for folder in (one, other):
        policy = load_policy(folder / "policy", device="cpu")
        assert isinstance(policy, nn.Module)
        weights.append(policy.state_dict())
    left, right = weights
    return rows[0] == rows[1] and left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def main() -> None:
    """Interrupt, resume, compare, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the next has the next number")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="treadle-resumes-") as folder:
        alone: dict[tuple[str, ...], Path] = {}
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            settings, first, at, by_hand = draw(seed)
            key = tuple(settings)
            if key not in alone:
                alone[key] = run(Path(folder) / f"alone-{seed}", *settings)
            output = Path(folder) / f"resumed-{seed}"
            interrupted(output, at, by_hand, *settings, *first)
            if first:
                run(output, *settings, *first)
            equal = same(alone[key], run(output, *settings))
            how = f"{'Ctrl-C' if by_hand else 'crash'} in iteration {at}{', then extended' if first else ''}"
            rows.append({"seed": seed, "exact": equal, "settings": settings, "interruption": how})
            echo(f"seed {seed}: {'exact' if equal else 'DIFFERENT'}: {' '.join(settings)}; {how}")
    exact = sum(row["exact"] for row in rows)
    echo(f"{exact} of {arguments.count} resumes exact")
    write_record(arguments.json, "resumes", {"count": len(rows), "exact": exact, "resumes": rows})
    sys.exit(exact != arguments.count)


if __name__ == "__main__":
    main()
