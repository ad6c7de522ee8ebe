"""Making a policy of the OpenVLA family: from a checkpoint directory, or from scratch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from treadle.errors import CheckpointError
from treadle.policies import checkpoint
from treadle.policies.image import PREPROCESSOR, make_preprocessor
from treadle.policies.prismatic import OWN_FILES, PrismaticPolicy
from treadle.policies.prismatic_config import PrismaticConfig
from treadle.policies.prompt import TOKENIZER
from treadle.policies.statistics import select_key

AnyPolicy = TypeVar("AnyPolicy", bound=PrismaticPolicy)
ReadPart = Callable[[Path, str], tuple[dict[str, Tensor], Path]]


@dataclass(frozen=True, slots=True)
class Directory:
    """What a checkpoint directory says of itself."""

    path: Path
    config: dict[str, Any]
    """Its config.json."""
    norm_stats: dict[str, Any]
    """Statistics of all data sets."""
    statistics: str
    """The data set whose statistics scale actions."""
    action_dim: int
    """A, of those statistics."""


def create(
    policy: type[AnyPolicy],
    config: PrismaticConfig,
    norm_stats: dict[str, Any],
    tokenizer: Path,
    *,
    statistics: str | None = None,
    seed: int = 0,
) -> AnyPolicy:
    """A policy with random weights. `tokenizer`: a directory that `build_tokenizer` wrote."""
    files = checkpoint.read_carried(tokenizer)
    if TOKENIZER not in files:
        raise checkpoint.missing(tokenizer / TOKENIZER)
    files.setdefault(PREPROCESSOR, make_preprocessor(config.image_size, len(config.towers)))
    key = select_key(norm_stats, statistics, "norm_stats")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return policy(config, norm_stats, key, files)


def read_directory(path: Path, statistics: str | None) -> Directory:
    """Read config and statistics. Raises CheckpointError."""
    config = checkpoint.read_json(path / checkpoint.CONFIG)
    norm_stats, source = checkpoint.read_norm_stats(path, config)
    key = select_key(norm_stats, statistics, source)
    action = norm_stats[key].get("action", {})
    if not action.get("q99") and not action.get("max"):
        raise CheckpointError(f"{source}: {key} has no action statistics")
    return Directory(path, config, norm_stats, key, len(action.get("q99") or action["max"]))


def read_own_part(directory: Path, name: str) -> tuple[dict[str, Tensor], Path]:
    """Tensors of a part of `OWN_FILES`, and the file they are from."""
    own = directory / OWN_FILES[name]
    return checkpoint.read_tensors(own), own


def assemble(
    policy: type[AnyPolicy],
    config: PrismaticConfig,
    directory: Directory,
    device: torch.device,
    dtype: torch.dtype | None,
    read_part: ReadPart = read_own_part,
) -> AnyPolicy:
    """The policy with the weights of its directory. `dtype` None keeps the stored one. Raises CheckpointError."""
    files = checkpoint.read_carried(directory.path)
    if TOKENIZER not in files:
        raise checkpoint.missing(directory.path / TOKENIZER)
    made = policy(config, directory.norm_stats, directory.statistics, files, allocate=False)
    main = nn.Module()
    for name, module in made.named_children():
        if name in OWN_FILES:
            checkpoint.assign(module, *read_part(directory.path, name))
        else:
            main.add_module(name, module)
    checkpoint.assign(main, checkpoint.read_weights(directory.path), directory.path)
    # Its buffer is computed, not stored.
    made.language_model.model.rotary_emb = LlamaRotaryEmbedding(made.language_model.config)
    for name, module in made.named_children():
        module.to(device=device, dtype=torch.float32 if name == "value_head" else dtype)
    return made
