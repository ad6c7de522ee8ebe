"""What a checkpoint directory holds, and the memory that it needs."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from treadle.policies.footprint import learn
from treadle.policies.tensors import TYPES, Stored, main_type, read_headers, read_torch, stream

if TYPE_CHECKING:
    from treadle.policies.protocol import Policy

LORA_RANK = 32
"""The rank that memory is estimated for, as published."""
_SLICE = 2**20
"""Numbers that are looked at together."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimates in bytes, for one sample at a time."""

    acting: int
    """The weights."""
    full: int
    """Full fine-tuning, in all."""
    lora: int | None = None
    """Fine-tuning by adapters of rank 32, in all; None for a policy that takes none."""
    further_sample: int | None = None
    """The activations of each further sample in training; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Remark:
    """What of a directory is not used, or not as it is stored."""

    text: str
    warning: bool = False
    """Whoever loads the directory should know it too, not only who inspects it."""


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
    dtype: str
    """The type that all of them get, unless another is asked for."""
    stored_bytes: int
    """Of the main weights."""
    files: int
    """Of the main weights."""
    memory_bytes: Memory
    training_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """What the memory of each way of fine-tuning is made of: `lora` and `full`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """With which the policy would load."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """What else people should know, by title."""
    statistics: dict[str, int] = field(default_factory=dict)
    """Data sets whose statistics are there, with their action dimensions."""
    part_types: dict[str, str] = field(default_factory=dict)
    """Types of the parts in files of their own, by file."""
    adapter: Path | None = None
    """An adapter that is not merged into the main weights, which are its base's."""
    remarks: tuple[Remark, ...] = ()
    """What is not used, or not as it is stored."""
    not_finite: dict[str, int] = field(default_factory=dict)
    """How many numbers are NaN or infinite, by file and tensor."""


def count_parameters(policy: nn.Module) -> dict[str, int]:
    """The number of parameters of each part of a policy."""
    counts: Counter[str] = Counter()
    for name, parameter in policy.named_parameters():
        counts[name.partition(".")[0]] += parameter.numel()
    return dict(counts)


def count_types(entries: Iterable[Stored]) -> dict[str, int]:
    """How many tensors there are of each type."""
    return dict(Counter(entry.dtype for entry in entries).most_common())


def find_not_finite(path: Path) -> dict[str, int]:
    """How many numbers of each tensor in a file are NaN or infinite, where any is; one tensor is looked at after
    another. Raises CheckpointError for a file that cannot be read.
    """
    found: dict[str, int] = {}
    for name, tensor in read_torch(path).items() if path.suffix == ".pt" else stream(path):
        count = sum(part.numel() - int(part.isfinite().count_nonzero()) for part in tensor.flatten().split(_SLICE))
        if count:
            found[name] = count
    return found


def count_contents(directory: Path, kind: str, policy: "Policy") -> CheckpointContents:
    """What can be said of any policy and its directory."""
    files = sorted(directory.glob("*.safetensors"))
    entries = [entry for file in files for entry in read_headers(file).values()]
    dtype = TYPES.get(main_type(entries), torch.float32) if entries else torch.float32
    parameters = count_parameters(policy)
    count = sum(parameters.values())
    policy.freeze(vision=False)
    full = learn(policy, policy.activations())
    return CheckpointContents(
        directory=directory,
        policy=kind,
        parameters=parameters,
        types=count_types(entries),
        dtype=str(dtype).removeprefix("torch."),
        stored_bytes=sum(entry.bytes for entry in entries),
        files=len(files),
        memory_bytes=Memory(acting=dtype.itemsize * count, full=sum(full.values())),
        training_bytes={"full": full},
        not_finite={f"{file.name}: {name}": n for file in files for name, n in find_not_finite(file).items()},
    )
