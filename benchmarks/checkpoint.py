"""Time and peak memory of loading a checkpoint, acting once and saving it, in a process of its own.

The checkpoint has random weights; what is measured does not depend on their values. Peaks are of resident memory, so
pages of mapped files that were touched count, although the system may drop them.
"""

import gc
import json as json_module
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.family import family_class
from benchmarks.output import write_record
from benchmarks.timing import peak_memory
from treadle.errors import ConfigError
from treadle.policies import checkpoint, load_policy
from treadle.policies.prismatic.preprocessor import PREPROCESSOR, make_preprocessor
from treadle.policies.prismatic.prompt import build_tokenizer
from treadle.policies.prismatic.sizes import TEXT_TOKENS, make_statistics, sized_config
from treadle.policies.sampling import Sampling
from treadle.policies.tensors import read_tensors

INSTRUCTION = "put the red cube on the white plate"
STATISTICS = "random"


def run(json: Path | None, *, size: str, kind: str, dtype: str, scratch: Path | None = None) -> dict[str, Any]:
    """Make a checkpoint below `scratch` (the system's folder by default), measure, remove it; writes JSON where asked.

    Sizes are in MB, peaks those of each stage. `ratio` is the growth of the peak by loading and touching every weight,
    over the size on disk. Raises ConfigError for an unknown size, OutputError where the disk is full.
    """
    if size not in TEXT_TOKENS:
        raise ConfigError(f"size: {size!r}; allowed: {', '.join(TEXT_TOKENS)}")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="treadle-") as folder:
        source, target = Path(folder) / "policy", Path(folder) / "saved"
        start = time.perf_counter()
        make_checkpoint(source, kind, size, getattr(torch, dtype))
        made = time.perf_counter() - start
        command = [sys.executable, "-m", "benchmarks.checkpoint", str(source), str(target)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        measured = json_module.loads(output.splitlines()[-1])
        same = _same(source, target)
    result = {
        "policy": kind,
        "size": size,
        "dtype": dtype,
        "seconds_make": made,
        **measured,
        "saved_bit_for_bit": same,
    }
    Console().print(
        f"{kind} {size} {dtype}: {result['stored_mb']:.0f} MB; peak {result['peak_mb_loaded']:.0f} MB after loading, "
        f"of which {result['peak_mb_before']:.0f} MB were there before (ratio {result['ratio']:.3f}), "
        f"{result['peak_mb_acted']:.0f} MB after acting, {result['peak_mb_saved']:.0f} MB after saving; "
        f"load {result['seconds_load']:.1f} s, act {result['seconds_act']:.1f} s, save {result['seconds_save']:.1f} s"
    )
    write_record(json, "checkpoint", result)
    return result


def make_checkpoint(directory: Path, kind: str, size: str, dtype: torch.dtype) -> None:
    """Write a checkpoint with random weights, a shard at a time: never more than one is in memory."""
    made = family_class(kind)
    config = sized_config(made.config_type, size)
    dimensions = config.action_dim
    norm_stats = make_statistics(STATISTICS, [-1.0] * dimensions, [1.0] * dimensions, [], [])
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer([INSTRUCTION], Path(folder), TEXT_TOKENS[size])
        files = checkpoint.read_carried(Path(folder))
    files[PREPROCESSOR] = make_preprocessor(config.image_size, len(config.towers))
    policy = made(config, norm_stats, STATISTICS, files, allocate=False).to(dtype)
    noise = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)

    def fill(name: str, tensor: Tensor) -> Tensor:
        if ".norm" in name or "layernorm" in name:
            return torch.ones(tensor.shape, dtype=dtype)
        count = tensor.numel()
        return noise.repeat(-(-count // len(noise)))[:count].reshape(tensor.shape)

    files |= {
        checkpoint.CONFIG: checkpoint.dump_json(
            {**config.published, "norm_stats": norm_stats, "treadle": {"policy": config.kind, **config.facts()}}
        ),
        checkpoint.STATISTICS: checkpoint.dump_json(norm_stats),
    }
    checkpoint.write_directory(directory, files, {checkpoint.WEIGHTS: policy.state_dict()}, export=fill)


def measure(source: Path, target: Path) -> dict[str, Any]:
    """Load and touch every weight, act once, save; in a fresh process, whose memory holds nothing else by then."""
    stored = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    policy: Any = None
    decision: Any = None

    def load() -> None:
        nonlocal policy
        policy = load_policy(source, device="cpu")
        for tensor in policy.state_dict().values():
            tensor.view(-1)[:: 4096 // tensor.element_size()].sum()

    def act() -> None:
        nonlocal decision
        frames = np.zeros((1, 1, *policy.config.image_size, 3), np.uint8)
        decision = policy.act(policy.prepare(frames, [INSTRUCTION]), Sampling(temperature=0.0))

    # What code takes is no part of a checkpoint: all of it is imported by now.
    gc.collect()
    peaks = {"peak_mb_before": _peak(lambda: None)}
    seconds: dict[str, float] = {}
    for name, done, work in (
        ("load", "loaded", load),
        ("act", "acted", act),
        ("save", "saved", lambda: policy.save(target)),
    ):
        start = time.perf_counter()
        peaks[f"peak_mb_{done}"] = _peak(work)
        seconds[f"seconds_{name}"] = time.perf_counter() - start
    return {
        "stored_mb": stored / 1e6,
        **peaks,
        "ratio": (peaks["peak_mb_loaded"] - peaks["peak_mb_before"]) / (stored / 1e6),
        **seconds,
        "actions_finite": bool(decision.actions.isfinite().all()),
    }


def _peak(work: Callable[[], object]) -> float:
    return peak_memory(work, torch.device("cpu"))


def _same(source: Path, target: Path) -> bool:
    """Whether both directories hold the same tensors, read one by one."""
    layouts = [checkpoint.read_layout(folder) for folder in (source, target)]
    if layouts[0] != layouts[1]:
        return False
    for name in sorted({stored.file for stored in layouts[0].values()}):
        before, after = (read_tensors(folder / name) for folder in (source, target))
        if not all(torch.equal(before[key], after[key]) for key in before):
            return False
    return True


if __name__ == "__main__":
    sys.stdout.write(json_module.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))) + "\n")
