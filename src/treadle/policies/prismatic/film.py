"""Feature-wise linear modulation of vision towers by the instruction (FiLM), as OpenVLA-OFT has it, arXiv:2502.19645.

Shapes: B images, S patches, D tower width, W width of the language model.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from treadle.errors import CheckpointError
from treadle.policies.prismatic.vision import Block, ViT

LORA_ALPHA = 16
"""Published training scales its adapters by min(rank, 16) / rank."""
WRAPPER = "vision_backbone."
"""In front of every name of the published file."""
_ADAPTED = ("qkv", "proj", "fc1", "fc2", "q", "kv")
"""Last names of layers that published training puts adapters on: those of all linear layers, in convolutions too."""
_ADAPTER = "default"


class FilmBlock(nn.Module):
    """A transformer block whose features are scaled and shifted by the instruction between attention and MLP."""

    def __init__(self, block: Block, width: int, language_width: int) -> None:
        super().__init__()
        self.block = block
        self.scale = nn.Linear(language_width, width)
        self.shift = nn.Linear(language_width, width)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]; `language` [B, W] is the mean embedding of the instruction."""
        x = self.block.attend(x)
        x = x * (1 + self.scale(language)[:, None]) + self.shift(language)[:, None]
        return self.block.feed(x)


def add_film(tower: ViT, language_width: int) -> None:
    """Wrap the blocks of a tower, in place."""
    tower.blocks = nn.ModuleList(
        FilmBlock(block, tower.width, language_width) for block in tower.blocks if isinstance(block, Block)
    )


def read_film(tensors: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Tensors of a published `vision_backbone--*.pt` by their names in the backbone, with its adapters (names of peft)
    merged into the weights they belong to. Raises CheckpointError for a file of another kind.
    """
    found = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    if not any(".scale." in name for name in found):
        raise CheckpointError(f"{source}: no FiLM layers; it has {', '.join(sorted(found)[:3]) or 'nothing'}, ...")
    merged: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in found.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            down, up = (f"{layer}.{matrix}.{_ADAPTER}.weight" for matrix in ("lora_A", "lora_B"))
            if down not in found or up not in found:
                raise CheckpointError(f"{source}: {name} without {down} and {up}; download the file again")
            used |= {down, up}
            tensor = _merged(tensor, found[down], found[up], f"{source}: {layer}")
        merged[name.replace(".base_layer.", ".")] = tensor
    left = sorted(name for name in found if ".lora_" in name and name not in used)
    if left:
        raise CheckpointError(f"{source}: adapters of LoRA alone can be merged, and {left[0]} is none")
    return merged


def _merged(weight: Tensor, down: Tensor, up: Tensor, source: str) -> Tensor:
    """The weight of a linear layer or a convolution with its adapter, rounded once."""
    rank = len(down)
    change = up.flatten(1).float() @ down.flatten(1).float() if up.ndim > 1 < down.ndim else None
    if change is None or change.numel() != weight.numel() or up.shape[1] != rank:
        raise CheckpointError(f"{source}: adapters {list(down.shape)} and {list(up.shape)} of a {list(weight.shape)}")
    return (weight.float() + change.view_as(weight) * (min(rank, LORA_ALPHA) / rank)).to(weight.dtype)


def adapter_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapters' matrices in a published `vision_backbone--*.pt`, by name; none where it has none."""
    return {name.removeprefix(WRAPPER): tuple(tensor.shape) for name, tensor in tensors.items() if ".lora_" in name}


def default_adapters(tensors: Mapping[str, Tensor], rank: int) -> dict[str, tuple[int, ...]]:
    """The same as published training makes them: on every linear layer and convolution but FiLM's own."""
    made: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if rank and kind == "weight" and layer.rpartition(".")[2] in _ADAPTED:
            made[f"{layer}.lora_A.{_ADAPTER}.weight"] = (rank, *tensor.shape[1:])
            made[f"{layer}.lora_B.{_ADAPTER}.weight"] = (len(tensor), rank, *(1,) * (tensor.ndim - 2))
    return made


def write_film(tensors: Mapping[str, Tensor], adapters: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The content of a published file: the inverse of `read_film`, with adapters of these names and shapes that change
    nothing.
    """
    adapted = {name.partition(".lora_")[0] for name in adapters}
    content: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        content[f"{WRAPPER}{layer}.base_layer.{kind}" if layer in adapted else WRAPPER + name] = tensor
    some = next(iter(tensors.values()))
    return content | {WRAPPER + name: some.new_zeros(shape) for name, shape in adapters.items()}


def without_film(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The towers under the names that they have without FiLM, as the main weights of a directory hold them."""
    return {
        name.replace(".block.", "."): tensor
        for name, tensor in tensors.items()
        if ".scale." not in name and ".shift." not in name
    }


def mean_language(embeddings: Tensor, mask: Tensor, stop: Tensor) -> Tensor:
    """What modulates: the mean [B, W] of the prompt's embeddings [B, L, W] where `mask` [B, L], and of the stop token
    [W], which stands behind the actions.
    """
    total = torch.where(mask[..., None], embeddings, 0).sum(dim=1) + stop
    return total / (mask.sum(dim=1, keepdim=True) + 1)
