"""Reading a checkpoint directory of the OpenVLA family: its config, its main weights, and parts that lie in files of
their own beside them, under published or own names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from treadle.errors import CheckpointError
from treadle.policies import adapters, checkpoint
from treadle.policies.prismatic.config import AnyConfig
from treadle.policies.prismatic.statistics import count_actions, select_key
from treadle.policies.prismatic.value_heads import PREFIX, PublishedHead, find_value_head
from treadle.policies.tensors import (
    DISTRIBUTED,
    TYPES,
    Stored,
    check_types,
    main_type,
    missing,
    read_tensors,
    read_torch,
    wrapped,
)

if TYPE_CHECKING:
    from treadle.policies.prismatic.stored import StoredPolicy

AnyPolicy = TypeVar("AnyPolicy", bound="StoredPolicy")

LORA_TARGETS = (
    *("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3", "out_proj"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
)
"""Layers that published fine-tuning puts adapters on, by the last part of their names."""
PARTS = ("vision_backbone", "projector", "language_model")
"""Parts of the published main weights, into which adapters go."""
CRITIC = "value_head"
"""The part that values decisions."""
FLOAT32 = (CRITIC, "action_scale")
"""Parts that are float32 whatever the rest is."""


@dataclass(frozen=True, slots=True)
class PartFile:
    """Where a part is kept."""

    file: str
    """Name in the directory; `.pt` for a torch state dict, else safetensors."""
    prefix: str = ""
    """In front of every name in it."""

    def names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The content of the file, of a part's tensors."""
        return {self.prefix + name: tensor for name, tensor in tensors.items()}


OWN = {
    name: PartFile(f"{name}.safetensors") for name in ("proprio_projector", "value_head", "action_head", "action_scale")
}
"""Where a part goes that was in no published file."""

PUBLISHED = {name: f"{name}--*.pt" for name in ("proprio_projector", "action_head", "vision_backbone")}
"""Parts that the official training script writes, one file each."""
DIFFUSION = "noisy_action_projector--*"
"""A published part that Treadle has no model of."""


def find_part(directory: Path, name: str) -> Path | None:
    """The file of a part, own or published. Raises CheckpointError where several could be meant."""
    if name in OWN and (directory / OWN[name].file).is_file():
        return directory / OWN[name].file
    paths = sorted(directory.glob(PUBLISHED[name])) if name in PUBLISHED else []
    if len(paths) > 1:
        raise CheckpointError(f"{directory}: {len(paths)} files of {name} ({paths[0].name}, ...); leave one")
    return paths[0] if paths else None


def has_published_parts(directory: Path) -> bool:
    """Whether the official training script wrote any part here."""
    return any(any(directory.glob(pattern)) for pattern in PUBLISHED.values())


def read_part(directory: Path, name: str) -> tuple[dict[str, Tensor], PartFile]:
    """Tensors of a part by their names in it, and where they were. Raises CheckpointError."""
    path = find_part(directory, name)
    if path is None:
        raise missing(directory / (OWN[name].file if name in OWN else PUBLISHED[name]))
    tensors = read_tensors(path) if path.suffix != ".pt" else read_torch(path)
    check_types(path, tensors)
    if path.suffix != ".pt":
        return tensors, PartFile(path.name)
    prefix = wrapped(tensors)
    # The official code takes this one off alone, so no other is written back.
    kept = DISTRIBUTED if prefix.startswith(DISTRIBUTED) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}, PartFile(path.name, kept)


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
    source: str
    """The file of the statistics."""
    statistics: str
    """The data set whose statistics scale actions."""
    action_dim: int
    """A, of those statistics."""
    layout: dict[str, Stored]
    """The tensors of the main weights."""
    foreign: dict[str, Stored] = field(default_factory=dict)
    """Tensors beside them that are no part of the published model: the critic of RL frameworks."""
    critic: PublishedHead | None = None
    """The value head that these are, where it is one that Treadle has and that is used."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that most numbers of the main weights have; float32 for float64."""
        found = TYPES[main_type(self.layout.values())]
        return torch.float32 if found == torch.float64 else found


def read_directory(path: Path, statistics: str | None) -> Directory:
    """Read config and statistics. Raises CheckpointError."""
    adapter = adapters.find_adapter(path)
    weights = path if adapter is None else adapters.find_base(adapter)
    path = settings_directory(path)
    for found in path.glob(DIFFUSION):
        raise CheckpointError(f"{found}: a diffusion head; supported are discrete tokens and L1 regression")
    config = checkpoint.read_json(path / checkpoint.CONFIG)
    norm_stats, source = checkpoint.read_norm_stats(path, config)
    key = select_key(norm_stats, statistics, source)
    dimensions = count_actions(norm_stats, key, source)
    layout = checkpoint.read_layout(weights)
    foreign = {name: stored for name, stored in layout.items() if name.startswith(PREFIX)}
    layout = {name: stored for name, stored in layout.items() if name not in foreign}
    for file in {stored.file for stored in layout.values()}:
        check_types(weights / file, {name: stored for name, stored in layout.items() if stored.file == file})
    critic = find_value_head(foreign)
    return Directory(path, weights, adapter, config, norm_stats, source, key, dimensions, layout, foreign, critic)


def with_critic(config: AnyConfig, found: Directory, overrides: Mapping[str, Any]) -> tuple[AnyConfig, Directory]:
    """The config with the value head that is among the main weights, and the directory whose `critic` it is; without it
    where another is meant, or it does not fit.
    """
    head = found.critic
    taken = config.value_outputs or "value_outputs" in overrides
    if head is None or taken or head.width != config.width or head.outputs not in (1, config.chunk):
        return config, replace(found, critic=None)
    return replace(config, value_outputs=head.outputs, value_hidden=head.hidden), found


def settings_directory(path: Path) -> Path:
    """Where config, tokenizer and statistics are: the base's directory where there is nothing but an adapter."""
    alone = not (path / checkpoint.CONFIG).is_file() and adapters.find_adapter(path) == path
    return adapters.find_base(path) if alone else path


def published_proprioception(directory: Path) -> int:
    """P of a published projector, 0 where there is none."""
    path = find_part(directory, "proprio_projector")
    if path is None:
        return 0
    state, _ = read_part(directory, "proprio_projector")
    if "fc1.weight" not in state or state["fc1.weight"].ndim != 2:
        raise CheckpointError(f"{path}: no matrix fc1.weight; it has: {', '.join(sorted(state))}")
    return state["fc1.weight"].shape[1]


def attach_adapter(made: "StoredPolicy", directory: Directory) -> None:
    """Put the adapter of a directory on the policy, in place. Towers with FiLM bring the adapters of their layers in a
    file of their own. Raises CheckpointError.
    """
    assert directory.adapter is not None
    film = find_part(directory.path, "vision_backbone") is not None
    wrapped_layers = ("vision_backbone.", "vision_backbone.vision_backbone.") if film else None
    adapters.attach(made, directory.adapter, PARTS, wrapped_layers)


def fill(
    made: AnyPolicy, directory: Directory, device: torch.device, dtype: torch.dtype | None, merge: bool
) -> AnyPolicy:
    """A skeleton with the weights of its directory. `merge` puts an adapter into them.

    All weights and parts have one type, by default that of the directory. Tensors that keep their type on a CPU stay
    mapped from their file; others are converted one by one. Raises CheckpointError.
    """
    dtype = dtype or directory.dtype
    main = nn.Module()
    for name, module in made.named_children():
        if name not in OWN:
            main.add_module(name, module)
            continue
        if name == CRITIC and directory.critic is not None:
            checkpoint.assign(module, directory.critic.read(directory.weights, device), directory.weights)
            continue
        if find_part(directory.path, name) is None and made.make_part(name, device):
            continue
        tensors, made.sources[name] = read_part(directory.path, name)
        kept = torch.float32 if name in FLOAT32 else dtype
        tensors = {key: tensor.to(device, kept) for key, tensor in tensors.items()}
        checkpoint.assign(module, tensors, directory.path / made.sources[name].file)
    weights = checkpoint.read_weights(directory.weights, dtype, device, directory.layout)
    checkpoint.assign(main, made.take_main(weights, directory.path, dtype, device), directory.weights)
    # Its buffer is computed, not stored.
    made.language_model.model.rotary_emb = LlamaRotaryEmbedding(made.language_model.config).to(device)
    if directory.adapter is not None:
        attach_adapter(made, directory)
        if merge:
            adapters.merge(made)
    return made
