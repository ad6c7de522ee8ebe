"""Feature-wise linear modulation of vision towers by the instruction (FiLM), as OpenVLA-OFT has it, arXiv:2502.19645.

Shapes: B images, S patches, D tower width, W width of the language model.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from treadle.errors import CheckpointError
from treadle.policies.prismatic.vision import Block, ViT

LORA_ALPHA = 16
"""Published training scales its adapters by min(rank, 16) / rank."""
WRAPPER = "vision_backbone."
"""In front of every name of the published file."""
_LINEAR = ("qkv", "proj", "fc1", "fc2", "q", "kv")


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


def film_rank(tensors: Mapping[str, Tensor]) -> int:
    """Rank of the adapters in a published `vision_backbone--*.pt`, 0 where there are none."""
    return next((len(tensor) for name, tensor in tensors.items() if ".lora_A." in name), 0)


def read_film(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors of a published `vision_backbone--*.pt` by their names in the backbone, with its adapters (names of peft)
    merged into the weights they belong to. Raises CheckpointError for a file of another kind.
    """
    found = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    if not any(".scale." in name for name in found):
        raise CheckpointError(f"{source}: no FiLM layers; it has {', '.join(sorted(found)[:3]) or 'nothing'}, ...")
    merged: dict[str, Tensor] = {}
    for name, tensor in found.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = found[f"{layer}.lora_A.default.weight"], found[f"{layer}.lora_B.default.weight"]
            rank = len(down)
            change = (up.float() @ down.float()) * (min(rank, LORA_ALPHA) / rank)
            tensor = (tensor.float() + change).to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def write_film(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The content of a published file: the inverse of `read_film`, with adapters that change nothing."""
    content: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        # Published training puts an adapter on every linear layer but FiLM's own.
        adapted = layer.rpartition(".")[2] in _LINEAR and ".patch_embed." not in name
        if not rank or not adapted:
            content[WRAPPER + name] = tensor
            continue
        content[f"{WRAPPER}{layer}.base_layer.{kind}"] = tensor
        if kind == "weight":
            content[f"{WRAPPER}{layer}.lora_A.default.weight"] = tensor.new_zeros(rank, tensor.shape[1])
            content[f"{WRAPPER}{layer}.lora_B.default.weight"] = tensor.new_zeros(tensor.shape[0], rank)
    return content


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
