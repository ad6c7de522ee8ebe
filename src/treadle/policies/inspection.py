"""What a checkpoint directory holds, and the memory that it needs."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from treadle.policies import checkpoint

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Of a number, by its type in a safetensors file."""
LORA_RANK = 32
"""The rank that memory is estimated for, as published."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimates in bytes, for one sample at a time."""

    acting: int
    """The weights."""
    full: int
    """Full fine-tuning: weights, gradients and AdamW's two moments, and a sample's activations."""
    lora: int | None = None
    """Fine-tuning by adapters of rank 32; None for a policy that takes none."""
    further_sample: int | None = None
    """The activations of each further sample in training; None where that is not known."""


@dataclass(frozen=True, slots=True)
class CheckpointContents:
    """What a directory holds."""

    directory: Path
    policy: str
    """Its name."""
    parameters: dict[str, int]
    """Number of parameters by part."""
    types: dict[str, int]
    """Number of tensors of the main weights by type."""
    stored_bytes: int
    """Of the main weights."""
    files: int
    """Of the main weights."""
    memory_bytes: Memory
    settings: dict[str, Any] = field(default_factory=dict)
    """With which the policy would load."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """What else people should know, by title."""
    statistics: dict[str, int] = field(default_factory=dict)
    """Data sets whose statistics are there, with their action dimensions."""
    adapter: Path | None = None
    """An adapter that is not merged into the main weights, which are its base's."""


def full_memory(parameters: int, width: int) -> int:
    """Bytes of full fine-tuning, of weights that have `width` bytes each.

    A parameter has its weight and gradient in the stored type and two moments in float32; below float32 it has a
    float32 master too.
    """
    return parameters * (2 * width + 8 + (4 if width < 4 else 0))


def count_parameters(policy: nn.Module) -> dict[str, int]:
    """The number of parameters of each part of a policy."""
    counts: Counter[str] = Counter()
    for name, parameter in policy.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return dict(counts)


def main_type(headers: Iterable[tuple[tuple[int, ...], str]]) -> tuple[dict[str, int], int, int]:
    """Of the shapes and types of tensors: how many there are of each type, their bytes together, and the bytes of a
    number of the most frequent type.
    """
    headers = list(headers)
    types = Counter(dtype for _, dtype in headers)
    stored = sum(math.prod(shape) * BYTES.get(dtype, 4) for shape, dtype in headers)
    return dict(types), stored, BYTES.get(types.most_common(1)[0][0], 4)


def count_contents(directory: Path, kind: str, policy: nn.Module) -> CheckpointContents:
    """What can be said of any policy and its directory."""
    files = sorted(directory.glob("*.safetensors"))
    types, stored, width = main_type(entry for file in files for entry in checkpoint.tensor_shapes(file).values())
    parameters = count_parameters(policy)
    count = sum(parameters.values())
    memory = Memory(acting=width * count, full=full_memory(count, width))
    return CheckpointContents(directory, kind, parameters, types, stored, len(files), memory)
