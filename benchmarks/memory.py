"""What the parts of a policy's memory are when they are measured, beside what `treadle plan` predicts for them.

Each case has a process of its own, on the CPU: it loads, acts, and makes an update of one micro-batch. Terms are
differences of the memory that is resident, weights mapped from files included, between stages. The allocator gives back
at once what is freed (`MALLOC_MMAP_THRESHOLD_`), so that what is resident is what is held.

A CPU that does not multiply bfloat16 in hardware takes many minutes for a pass in it: there activations are
measured in float32 alone. Gradients are filled in, as a pass leaves them.
"""

import ctypes
import gc
import json as json_module
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoint import INSTRUCTION, make_checkpoint
from benchmarks.output import make_table, write_record
from benchmarks.timing import peak_memory
from treadle.config.schema import FineTuningConfig, LoraConfig
from treadle.devices import computes_bfloat16
from treadle.errors import ConfigError
from treadle.policies.footprint import ADAPTERS, GRADIENTS, MASTER, MOMENTS, WEIGHTS, copies, hold, keep
from treadle.policies.load import outline_policy
from treadle.policies.prismatic.activations import count_activations
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.sizes import TEXT_TOKENS
from treadle.policies.sampling import Sampling
from treadle.training.finetuning import load_trainable, make_trainable
from treadle.training.optimizer import MasterAdamW

Way = Literal["full", "lora"]
LORA_RANK = 32
SAMPLES = 4
"""Of the micro-batch."""
_PAGES = 2**18
"""Blocks from this size on have pages of their own, which go back to the system when they are freed."""


def run(
    json: Path | None,
    *,
    size: str = "200m",
    kind: str = "openvla_oft",
    dtypes: Sequence[str] = ("bfloat16", "float32"),
    scratch: Path | None = None,
) -> list[dict[str, Any]]:
    """Measure a full update and one of adapters in each type; print a table and write JSON where asked.

    Raises ConfigError for an unknown size.
    """
    if size not in TEXT_TOKENS:
        raise ConfigError(f"size: {size!r}; allowed: {', '.join(TEXT_TOKENS)}")
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=scratch, prefix="treadle-") as folder:
        for dtype in dtypes:
            make_checkpoint(Path(folder) / dtype, kind, size, getattr(torch, dtype))
        for dtype, way in product(dtypes, ("full", "lora")):
            command = [sys.executable, "-m", "benchmarks.memory", str(Path(folder) / dtype), way]
            allocator = {"MALLOC_MMAP_THRESHOLD_": str(_PAGES), "MALLOC_TRIM_THRESHOLD_": "0"}
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ | allocator
            ).stdout
            terms = json_module.loads(output.splitlines()[-1])
            cases.append({"dtype": dtype, "update": way, "terms": terms})
            # After each case: they take minutes.
            settings = {"policy": kind, "size": size, "samples": SAMPLES, "lora_rank": LORA_RANK}
            write_record(json, "memory", {**settings, "cases": cases})
    Console().print(_table(cases, f"{kind} {size}: {SAMPLES} samples, with gradient checkpointing"))
    return cases


def measure(directory: Path, way: Way) -> dict[str, dict[str, float]]:
    """MB of each term, measured and predicted; in a fresh process, whose memory holds nothing else by then."""
    settings = FineTuningConfig(lora=LoraConfig(rank=LORA_RANK if way == "lora" else 0), gradient_checkpointing=True)
    predicted = predict(directory, settings)
    held: dict[str, Any] = {}

    def load() -> None:
        policy = load_trainable(directory, settings, torch.device("cpu"), freeze_vision=False)
        for tensor in policy.state_dict().values():
            tensor.view(-1)[:: 4096 // tensor.element_size()].sum()
        policy.freeze(vision=False)
        held["policy"] = policy

    def act() -> None:
        held["decision"] = held["policy"].act(held["inputs"], Sampling())

    def descend() -> None:
        evaluation = held["policy"].train().evaluate(held["inputs"], held["decision"].choice, Sampling())
        evaluation.log_probs.sum().backward()

    def fill() -> None:
        for parameter in held["policy"].parameters():
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1e-3)

    def step() -> None:
        held["optimizer"].step()

    # What code takes is no part of it: a small pass of everything that is not the policy comes first.
    _warm_up()
    before = _resident()
    load()
    loaded = _resident()
    policy = held["policy"]
    passes = policy.projector.fc1.weight.dtype == torch.float32 or computes_bfloat16(policy.device)
    acted = passed = 0.0
    # As from the second micro-batch on, the pass adds to gradients that are there.
    fill()
    after = _resident()
    if passes:
        frames = np.zeros((SAMPLES, 1, *policy.config.image_size, 3), np.uint8)
        held["inputs"] = policy.prepare(frames, [INSTRUCTION] * SAMPLES)
        acted = _peak(act)
        passed = _peak(descend)
    held["optimizer"] = MasterAdamW([p for p in policy.parameters() if p.requires_grad], fused=True)
    stepped = _peak(step)
    held["optimizer"].zero_grad(set_to_none=True)
    rested = _resident()
    gradients, state = after - loaded, rested - loaded
    measured = {
        "weights and adapters": loaded - before,
        "gradients": gradients,
        "master and moments": state,
        "gradients and optimizer state": gradients + state,
        "copies at the step": stepped - rested - gradients,
        "peak of the step": stepped - before,
    }
    if passes:
        # In the first update the optimizer's state is made after the pass.
        measured |= {"acting": acted - after, "activations": passed - after, "peak of the pass": passed - before}
    return {name: {"measured_mb": measured[name], "predicted_mb": predicted[name]} for name in measured}


def predict(directory: Path, settings: FineTuningConfig) -> dict[str, float]:
    """MB of each term."""
    policy = make_trainable(outline_policy(directory, settings), settings, freeze_vision=False)
    assert isinstance(policy, PrismaticPolicy)
    policy.freeze(vision=False)
    tokens = int(policy.prompts.encode([INSTRUCTION])[1].sum())
    activations = count_activations(policy, prompt=tokens)
    parameters = [hold(name, parameter) for name, parameter in policy.named_parameters()]
    parts = keep(parameters)
    state, step = parts[MASTER] + parts[MOMENTS], copies(parameters)
    passing = activations.training(SAMPLES, recompute=True)
    found = {
        "weights and adapters": parts[WEIGHTS] + parts[ADAPTERS],
        "acting": activations.playing(SAMPLES, accelerated=False),
        "gradients": parts[GRADIENTS],
        "master and moments": state,
        "gradients and optimizer state": parts[GRADIENTS] + state,
        "activations": passing,
        "copies at the step": step,
        "peak of the step": sum(parts.values()) + step,
        "peak of the pass": sum(parts.values()) - state + passing,
    }
    return {name: count / 1e6 for name, count in found.items()}


def _warm_up() -> None:
    """Import and start what torch makes at its first use: threads, kernels, autograd."""
    layer = torch.nn.Linear(64, 64)
    optimizer = MasterAdamW(layer.parameters(), fused=True)
    layer(torch.zeros(8, 64)).sum().backward()
    optimizer.step()
    gc.collect()


def _resident() -> float:
    gc.collect()
    # Small blocks too go back.
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


def _peak(work: Callable[[], object]) -> float:
    return peak_memory(work, torch.device("cpu"))


def _table(cases: Sequence[dict[str, Any]], title: str) -> Table:
    table = make_table(title, ["type", "update", "MB of"], ["measured", "predicted", "difference"])
    for case in cases:
        for name, term in case["terms"].items():
            measured, predicted = term["measured_mb"], term["predicted_mb"]
            difference = f"{predicted / measured - 1:+.1%}" if measured > 1 else ""
            table.add_row(case["dtype"], case["update"], name, f"{measured:,.0f}", f"{predicted:,.0f}", difference)
    return table


if __name__ == "__main__":
    given: Any = sys.argv[2]
    sys.stdout.write(json_module.dumps(measure(Path(sys.argv[1]), given)) + "\n")
