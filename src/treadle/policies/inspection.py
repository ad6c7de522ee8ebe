"""What a checkpoint directory holds and what it needs, from its small files and the headers of the large ones."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from treadle.policies import adapters, checkpoint
from treadle.policies.load import policy_kind, policy_module
from treadle.policies.prismatic import LORA_TARGETS, PrismaticPolicy
from treadle.policies.prismatic_load import read_norm_stats_of

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
LORA_RANK = 32
"""Of the estimate, as published."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimates in bytes for one sample at a time; a further sample adds `sample`, its activations."""

    acting: int
    """The weights."""
    lora: int
    """Weights, and of each parameter of adapters, heads and projectors in files of their own: itself, its gradient and
    AdamW's two moments in float32. With gradient checkpointing."""
    full: int
    """Of each parameter its weight and gradient in the stored type, and AdamW's two moments in float32; below float32
    a float32 master too. With gradient checkpointing."""
    sample: int
    """What gradient checkpointing keeps of a sample between blocks, and all that is in the largest block."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a directory holds."""

    directory: Path
    kind: str
    facts: dict[str, Any]
    """Settings that the policy would load with."""
    statistics: dict[str, int]
    """Data sets whose statistics are there, with their action dimensions."""
    parameters: dict[str, int]
    """Number of parameters by part."""
    dtypes: dict[str, int]
    """Number of tensors of the main weights by type."""
    stored: int
    """Bytes of the main weights."""
    shards: int
    adapter: Path | None
    """An adapter that is not merged into the main weights, which are its base's."""
    memory: Memory


def examine(directory: Path) -> Holdings:
    """Look into a directory without loading its weights: every name and shape is checked all the same.

    Raises CheckpointError for what would keep it from loading.
    """
    kind = policy_kind(directory)
    keys = read_norm_stats_of(directory)
    policy, found = policy_module(kind).skeleton(directory, next(iter(sorted(keys)), None))
    headers = {
        name: entry
        for file in sorted(set(policy.layout.values()))
        for name, entry in checkpoint.tensor_shapes(found.weights / file).items()
    }
    expected = {name: tuple(tensor.shape) for name, tensor in policy.main_state().items()}
    checkpoint.check_shapes(expected, {name: shape for name, (shape, _) in headers.items()}, found.weights)
    parameters: dict[str, int] = {}
    for name, parameter in policy.named_parameters():
        part = name.partition(".")[0]
        parameters[part] = parameters.get(part, 0) + parameter.numel()
    dtypes: dict[str, int] = {}
    for _, dtype in headers.values():
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
    stored = sum(math.prod(shape) * BYTES.get(dtype, 4) for shape, dtype in headers.values())
    main = max(dtypes, key=lambda dtype: dtypes[dtype])
    return Holdings(
        directory=directory,
        kind=kind,
        facts=policy.config.facts(),
        statistics={key: len(entry.get("action", {}).get("q99", [])) for key, entry in keys.items()},
        parameters=parameters,
        dtypes=dtypes,
        stored=stored,
        shards=len(set(policy.layout.values())),
        adapter=found.adapter,
        memory=estimate(policy, BYTES.get(main, 4)),
    )


def estimate(policy: PrismaticPolicy, width: int) -> Memory:
    """Memory of a policy whose weights have `width` bytes each."""
    count = sum(parameter.numel() for parameter in policy.parameters())
    adapted = sum(
        LORA_RANK * (module.weight.shape[0] + math.prod(module.weight.shape[1:]))
        for name, module in policy.named_modules()
        if name.partition(".")[0] in adapters.PARTS
        and name.rpartition(".")[2] in LORA_TARGETS
        and isinstance(module, nn.Linear | nn.Conv2d)
    )
    beside = sum(p.numel() for name, p in policy.named_parameters() if name.partition(".")[0] not in adapters.PARTS)
    text = policy.language_model.config
    tokens = sum(tower.patches for tower in policy.towers()[:1]) + policy.config.prompt_length + policy.config.tokens
    block = tokens * (8 * text.hidden_size + 4 * text.intermediate_size)
    sample = width * (tokens * text.hidden_size * text.num_hidden_layers + block)
    trained = width + width + 8 + (4 if width < 4 else 0)
    return Memory(
        acting=width * count,
        lora=width * count + 16 * adapted + (16 - width) * beside + sample,
        full=trained * count + sample,
        sample=sample,
    )
