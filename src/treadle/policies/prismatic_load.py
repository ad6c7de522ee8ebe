"""Making a policy of the OpenVLA family: from a checkpoint directory, or from scratch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from treadle.errors import CheckpointError
from treadle.policies import adapters, checkpoint
from treadle.policies.image import PREPROCESSOR, make_preprocessor
from treadle.policies.parts import OWN, find_part, read_part, refuse_unsupported
from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.prismatic_config import PrismaticConfig
from treadle.policies.prompt import TOKENIZER
from treadle.policies.statistics import select_key

AnyPolicy = TypeVar("AnyPolicy", bound=PrismaticPolicy)

FLOAT32 = ("value_head", "action_scale")
"""Parts that are float32 whatever the rest is."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What a checkpoint directory says of itself."""

    path: Path
    weights: Path
    """The directory of the main weights: itself, or that of an adapter's base."""
    adapter: Path | None
    """The folder of an adapter that is not merged into them."""
    config: dict[str, Any]
    """Its config.json."""
    norm_stats: dict[str, Any]
    """Statistics of all data sets."""
    statistics: str
    """The data set whose statistics scale actions."""
    action_dim: int
    """A, of those statistics."""


def read_directory(path: Path, statistics: str | None) -> Directory:
    """Read config and statistics. Raises CheckpointError."""
    adapter = adapters.find_adapter(path)
    weights = path if adapter is None else adapters.find_base(adapter)
    if adapter == path and not (path / checkpoint.CONFIG).is_file():
        # Nothing but an adapter: all else is the base's.
        path = weights
    refuse_unsupported(path)
    config = checkpoint.read_json(path / checkpoint.CONFIG)
    norm_stats, source = checkpoint.read_norm_stats(path, config)
    key = select_key(norm_stats, statistics, source)
    action = norm_stats[key].get("action", {})
    if not action.get("q99") and not action.get("max"):
        raise CheckpointError(f"{source}: {key} has no action statistics")
    return Directory(path, weights, adapter, config, norm_stats, key, len(action.get("q99") or action["max"]))


def read_norm_stats_of(path: Path) -> dict[str, Any]:
    """Statistics of all data sets in a directory. Raises CheckpointError."""
    adapter = adapters.find_adapter(path)
    if adapter is not None and adapter == path and not (path / checkpoint.CONFIG).is_file():
        path = adapters.find_base(adapter)
    return checkpoint.read_norm_stats(path, checkpoint.read_json(path / checkpoint.CONFIG))[0]


def published_proprioception(directory: Path) -> int:
    """P of a published projector, 0 where there is none."""
    path = find_part(directory, "proprio_projector")
    if path is None:
        return 0
    state, _ = read_part(directory, "proprio_projector")
    if "fc1.weight" not in state or state["fc1.weight"].ndim != 2:
        raise CheckpointError(f"{path}: no matrix fc1.weight; it has: {', '.join(sorted(state))}")
    return state["fc1.weight"].shape[1]


@dataclass(frozen=True, slots=True)
class Maker(Generic[AnyPolicy]):
    """Makes policies of one class."""

    policy: type[AnyPolicy]
    configure: Callable[[Directory, dict[str, Any]], PrismaticConfig]
    """The config of a directory, with settings that override it. Raises CheckpointError or ConfigError."""

    def create(
        self,
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
            return self.policy(config, norm_stats, key, files)

    def skeleton(self, directory: Path, statistics: str | None = None, **overrides: Any) -> tuple[AnyPolicy, Directory]:
        """The policy of a directory with parameters on the meta device, and what was read.

        `overrides` are fields of the config. Raises CheckpointError or ConfigError.
        """
        found = read_directory(directory, statistics)
        config = self.configure(found, overrides)
        files = checkpoint.read_carried(found.path)
        if TOKENIZER not in files:
            raise checkpoint.missing(found.path / TOKENIZER)
        made = self.policy(config, found.norm_stats, found.statistics, files, allocate=False)
        # The padding token may be the first of the rows that fill the vocabulary up.
        most, tokens = config.vocabulary + config.pad_to_multiple_of, made.prompts.size
        if not config.vocabulary <= tokens <= most:
            raise CheckpointError(
                f"{found.path / TOKENIZER}: {tokens} tokens, but config.json has text_config.vocab_size {most}, of "
                f"which {config.vocabulary} are words and actions; they are of different checkpoints"
            )
        made.base = found.weights
        made.layout = checkpoint.read_layout(found.weights)
        return made, found

    def load(
        self,
        directory: Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        statistics: str | None = None,
        merge: bool = True,
        **overrides: Any,
    ) -> AnyPolicy:
        """Read a published or own directory. `dtype` None keeps the stored one; `merge` puts an adapter into the
        weights; `overrides` are fields of the config. Raises CheckpointError or ConfigError.
        """
        return fill(*self.skeleton(directory, statistics, **overrides), device, dtype, merge)


def fill(
    made: AnyPolicy, directory: Directory, device: torch.device, dtype: torch.dtype | None, merge: bool
) -> AnyPolicy:
    """A skeleton with the weights of its directory. `dtype` None keeps the stored one; `merge` an adapter into them.

    Tensors that keep their type on a CPU stay mapped from their file; others are converted one by one. Raises
    CheckpointError.
    """
    main = nn.Module()
    for name, module in made.named_children():
        if name not in OWN:
            main.add_module(name, module)
            continue
        if find_part(directory.path, name) is None and made.make_part(name, device):
            continue
        tensors, made.sources[name] = read_part(directory.path, name)
        kept = torch.float32 if name in FLOAT32 else dtype
        tensors = {key: tensor.to(device, kept) for key, tensor in tensors.items()}
        checkpoint.assign(module, tensors, directory.path / made.sources[name].file)
    weights = checkpoint.read_weights(directory.weights, dtype, device)
    checkpoint.assign(main, made.take_main(weights, directory.path, dtype, device), directory.weights)
    # Its buffer is computed, not stored.
    made.language_model.model.rotary_emb = LlamaRotaryEmbedding(made.language_model.config).to(device)
    if directory.adapter is not None:
        adapters.attach(made, directory.adapter)
        if merge:
            adapters.merge(made)
    return made
