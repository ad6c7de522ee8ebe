"""Reading a checkpoint directory of the OpenVLA family: its config, parts that lie in files of their own beside the
main weights, under published or own names, and what can be said of it without the weights.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from treadle.errors import CheckpointError
from treadle.policies import checkpoint
from treadle.policies.inspection import LORA_RANK, CheckpointContents, Memory, count_parameters, full_memory, main_type
from treadle.policies.prismatic import adapters
from treadle.policies.prismatic.statistics import count_actions, select_key

if TYPE_CHECKING:
    from treadle.policies.prismatic.policy import PrismaticPolicy

AnyPolicy = TypeVar("AnyPolicy", bound="PrismaticPolicy")

LORA_TARGETS = (
    *("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3", "out_proj"),
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
)
"""Layers that published fine-tuning puts adapters on, by the last part of their names."""
FLOAT32 = ("value_head", "action_scale")
"""Parts that are float32 whatever the rest is."""
DISTRIBUTED = "module."
"""What distributed training leaves in front of the names in published files."""


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
        raise checkpoint.missing(directory / (OWN[name].file if name in OWN else PUBLISHED[name]))
    if path.suffix != ".pt":
        return checkpoint.read_tensors(path), PartFile(path.name)
    tensors = checkpoint.read_torch(path)
    prefix = DISTRIBUTED if tensors and all(key.startswith(DISTRIBUTED) for key in tensors) else ""
    return {key.removeprefix(DISTRIBUTED): tensor for key, tensor in tensors.items()}, PartFile(path.name, prefix)


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
    return Directory(path, weights, adapter, config, norm_stats, source, key, dimensions)


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


def examine(policy_class: "type[PrismaticPolicy]", directory: Path) -> CheckpointContents:
    """Look into a directory without loading its weights. Raises CheckpointError for what would keep it from loading."""
    settings = settings_directory(directory)
    keys, _ = checkpoint.read_norm_stats(settings, checkpoint.read_json(settings / checkpoint.CONFIG))
    first = min(keys) if isinstance(keys, dict) and len(keys) > 1 else None
    policy, found = policy_class.skeleton(directory, first)
    files = sorted(set(policy.layout.values()))
    headers = {name: x for file in files for name, x in checkpoint.tensor_shapes(found.weights / file).items()}
    expected = checkpoint.shapes(policy.main_state())
    checkpoint.check_shapes(expected, {name: shape for name, (shape, _) in headers.items()}, found.weights)
    types, stored, width = main_type(headers.values())
    facts = policy.config.facts()
    state = facts["proprioception_dim"]
    descriptions = {
        "actions": f"{policy.chunk} of {policy.action_dim} dimensions, head: {facts.get('head', 'tokens')}",
        "proprioception": f"{state} numbers" if state else "none",
    }
    descriptions |= policy_class.conventions(found, policy.config)
    if facts.get("film"):
        descriptions["FiLM"] = "the instruction modulates the towers"
    return CheckpointContents(
        directory=directory,
        policy=policy_class.kind,
        parameters=count_parameters(policy),
        types=types,
        stored_bytes=stored,
        files=len(files),
        memory_bytes=estimate(policy, width),
        settings=facts,
        descriptions=descriptions,
        statistics={key: count_actions(keys, key, found.source) for key in keys},
        adapter=found.adapter,
    )


def estimate(policy: "PrismaticPolicy", width: int) -> Memory:
    """Memory of a policy whose weights have `width` bytes each, trained with gradient checkpointing.

    That keeps what lies between a sample's blocks, and all that is in the largest one. Of adapters, and of heads and
    projectors in files of their own, each parameter has itself, its gradient and two moments in float32.
    """
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
    return Memory(
        acting=width * count,
        full=full_memory(count, width) + sample,
        lora=width * count + 16 * adapted + (16 - width) * beside + sample,
        further_sample=sample,
    )
