"""Decisions per second and samples trained per second of a policy with random weights.

Each figure stands beside the floor, which is the matrix products of the same shapes alone, and beside a plain path
(`benchmarks.reference`) on the same weights, dtype and threads; all are timed in the same run, one after another.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.family import FAMILY, family_class
from benchmarks.floor import Floor
from benchmarks.output import make_table, write_record
from benchmarks.reference import REFERENCES
from benchmarks.timing import peak_memory, time_in_turn
from treadle.devices import choose_device, prepare_cpu
from treadle.errors import ConfigError
from treadle.policies.load import DTYPES
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.prompt import build_tokenizer
from treadle.policies.prismatic.sizes import TEXT_TOKENS, make_statistics, sized_config
from treadle.policies.sampling import Sampling

Work = Callable[[], Any]

INSTRUCTIONS = ("put the red cube on the white plate", "lift the ball")
"""Alternating, so that prompts have two lengths."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row. Rates are medians over rounds; `ratio` is ours over the reference, `floor_share` the floor's time over
    ours. Acting is from uint8 frames to actions, log-probs and values; training is the gradient of the sum of log-probs
    and values with respect to every parameter, without an optimizer step. None where it was not measured. Memory is
    allocated on a GPU, and resident in the whole process on a CPU.
    """

    policy: str
    size: str
    batch: int
    decisions_per_second: float
    reference_decisions_per_second: float
    ratio: float
    floor_share: float
    peak_memory_mb: float
    samples_trained_per_second: float | None
    reference_samples_trained_per_second: float | None
    training_ratio: float | None
    training_floor_share: float | None
    training_peak_memory_mb: float | None
    gigaflops_per_decision: float
    """Of the matrix products."""


def run(
    json: Path | None,
    *,
    policies: Sequence[str] = tuple(FAMILY),
    sizes: Sequence[str] = ("tiny", "200m"),
    batches: Sequence[int] = (1, 16),
    training_batches: Sequence[int] = (1,),
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    seconds: float = 1.0,
    compiled: bool = False,
    limit: float = math.inf,
) -> list[Measurement]:
    """Measure, print a table and write JSON where asked.

    A row that would start after `limit` seconds is left out, and named under `left_out` in the JSON.

    Acting is measured at all batches, training at `training_batches`. `seconds` is the least time spent on each figure;
    `dtype` "auto" is bfloat16 on a GPU and float32 on a CPU; `compiled`: ours acts through compiled blocks. Raises
    ConfigError or OutputError.
    """
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype: {dtype!r}; allowed: auto, {', '.join(DTYPES)}")
    chosen = choose_device(device)
    if dtype == "auto":
        dtype = "float32" if chosen.type == "cpu" else "bfloat16"
    before = torch.get_num_threads()
    rows, left_out, start = [], [], time.monotonic()
    try:
        prepare_cpu(threads or before)
        used = torch.get_num_threads()
        for size, kind in product(sizes, policies):
            policy = None
            for batch in sorted({*batches, *training_batches}):
                if time.monotonic() - start > limit:
                    left_out.append({"policy": kind, "size": size, "batch": batch})
                    continue
                if policy is None:
                    policy = make_policy(kind, size, chosen, getattr(torch, dtype))
                    policy.compile_blocks(compiled)
                    _warm_up(policy)
                rows.append(_measure(policy, kind, size, batch, batch in training_batches, seconds))
    finally:
        torch.set_num_threads(before)
    Console().print(_table(rows, f"{chosen}, {dtype}, {used} threads"))
    write_record(
        json,
        "policy",
        {
            "device": str(chosen),
            "dtype": dtype,
            "threads": used,
            "seconds": seconds,
            "compiled": compiled,
            "left_out": left_out,
            "rows": [asdict(row) for row in rows],
        },
    )
    return rows


def make_policy(
    kind: str, size: str, device: torch.device, dtype: torch.dtype, layers: int | None = None
) -> PrismaticPolicy:
    """A policy of a size with random weights, made where it runs; `layers` of its decoder, in place of the size's own.

    Raises ConfigError for what is not known.
    """
    made = family_class(kind)
    config = sized_config(made.config_type, size, layers=layers, value_outputs=1)
    dimensions = config.action_dim
    statistics = make_statistics("random", [-1.0] * dimensions, [1.0] * dimensions, [], [])
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer(INSTRUCTIONS, Path(folder), TEXT_TOKENS[size])
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                policy = made.create(config, statistics, Path(folder))
        finally:
            torch.set_default_dtype(default)
    if policy.value_head is not None:
        policy.value_head.float()
    policy.freeze(vision=False)
    return policy.eval()


def make_inputs(policy: PrismaticPolicy, batch: int) -> PrismaticInputs:
    """Random frames, and instructions of two lengths."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (batch, 1, *policy.config.image_size, 3), dtype=np.uint8)
    return policy.prepare(frames, [INSTRUCTIONS[index % len(INSTRUCTIONS)] for index in range(batch)])


def _warm_up(policy: PrismaticPolicy) -> None:
    """Go through everything once, with one sample: at full size it would take as long as it is measured for."""
    inputs = make_inputs(policy, 1)
    floor = Floor(policy, inputs)
    for work in (*_acting(policy, inputs), *_training(policy, inputs), floor.forward):
        work()


def _measure(policy: PrismaticPolicy, kind: str, size: str, batch: int, trained: bool, seconds: float) -> Measurement:
    inputs = make_inputs(policy, batch)
    acting, training = _acting(policy, inputs), _training(policy, inputs)
    # Before the floor takes memory of its own.
    memory = peak_memory(acting[0], policy.device)
    training_memory = peak_memory(training[0], policy.device) if trained else None
    floor = Floor(policy, inputs)
    own, plain, least = time_in_turn([*acting, floor.forward], seconds)
    learning = time_in_turn([*training, floor.forward_and_backward], seconds) if trained else None
    return Measurement(
        policy=kind,
        size=size,
        batch=batch,
        decisions_per_second=batch / own,
        reference_decisions_per_second=batch / plain,
        ratio=plain / own,
        floor_share=least / own,
        peak_memory_mb=memory,
        samples_trained_per_second=None if learning is None else batch / learning[0],
        reference_samples_trained_per_second=None if learning is None else batch / learning[1],
        training_ratio=None if learning is None else learning[1] / learning[0],
        training_floor_share=None if learning is None else learning[2] / learning[0],
        training_peak_memory_mb=training_memory,
        gigaflops_per_decision=floor.operations / batch / 1e9,
    )


def _acting(policy: PrismaticPolicy, inputs: PrismaticInputs) -> tuple[Work, Work]:
    """A decision, ours and plain."""
    plain = REFERENCES[type(policy)](policy)
    return lambda: policy.act(inputs, Sampling()), lambda: plain.act(inputs)


def _training(policy: PrismaticPolicy, inputs: PrismaticInputs) -> tuple[Work, Work]:
    """A gradient of every parameter, ours and plain."""
    codec = policy.codec
    tokens = torch.randint(codec.first_id, codec.vocabulary, (len(inputs), policy.config.tokens), device=policy.device)
    plain = REFERENCES[type(policy)](policy)

    def descend(log_probs: Tensor, values: Tensor | None) -> None:
        assert values is not None
        (log_probs.sum() + values.sum()).backward()
        policy.zero_grad(set_to_none=True)

    def own() -> None:
        evaluation = policy.evaluate(inputs, tokens, Sampling())
        descend(evaluation.log_probs, evaluation.values)

    return own, lambda: descend(*plain.evaluate(inputs, tokens))


def _table(rows: Iterable[Measurement], title: str) -> Table:
    columns = ("decisions/s", "plain", "ratio", "floor", "MB", "trained/s", "plain", "ratio", "floor", "MB")
    table = make_table(f"policies with random weights: {title}", ("policy", "size", "batch"), columns)
    for row in rows:
        table.add_row(
            row.policy,
            row.size,
            str(row.batch),
            *(_cell(x, kind) for x, kind in zip(_figures(row), ("", "", "x", "%", "MB") * 2, strict=True)),
        )
    return table


def _figures(row: Measurement) -> tuple[float | None, ...]:
    return (
        row.decisions_per_second,
        row.reference_decisions_per_second,
        row.ratio,
        row.floor_share,
        row.peak_memory_mb,
        row.samples_trained_per_second,
        row.reference_samples_trained_per_second,
        row.training_ratio,
        row.training_floor_share,
        row.training_peak_memory_mb,
    )


def _cell(x: float | None, kind: str) -> str:
    if x is None:
        return "-"
    return {"%": f"{x:.0%}", "x": f"{x:.2f}x", "MB": f"{x:,.0f}"}.get(kind, f"{x:,.2f}")
