"""The vision towers of published checkpoints, with their parameter names.

Shapes: B images, S patches, D tower width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from treadle.errors import CheckpointError
from treadle.policies.prismatic.blocks import compiled
from treadle.policies.towers import ConvTower, Tower


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return x * self.scale_factor


class PatchEmbed(nn.Module):
    """Pixels [B, 3, H, W] to patch embeddings [B, S, D]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, S, D]."""
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, GELU between: of a block, and of the projector from proprioception to one token."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block, with or without LayerScale."""

    fast = False
    """Run compiled where no gradient is kept."""

    def __init__(self, width: int, heads: int, mlp_dim: int, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_dim, width)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        if self.fast and not torch.is_grad_enabled():
            return compiled(Block._through)(self, x)
        return self._through(x)

    def _through(self, x: Tensor) -> Tensor:
        return self.feed(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """The first half: attention."""
        return x + self.ls1(self.attn(self.norm1(x)))

    def feed(self, x: Tensor) -> Tensor:
        """The second half: the MLP."""
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling. Stored in checkpoints and never used."""

    def __init__(self, width: int, mlp_dim: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_dim, width)


class ViT(Tower):
    """A vision transformer, read at its second-to-last block, without final norm and prefix tokens."""

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int = 14,
        class_token: bool = False,
        registers: int = 0,
        layer_scale: bool = False,
        attention_pool: bool = False,
    ) -> None:
        super().__init__()
        self.width = embed_dim
        self.patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        if registers:
            self.reg_token = nn.Parameter(torch.zeros(1, registers, embed_dim))
        self.prefix = int(class_token) + registers
        self.largest = (self.patches + self.prefix) * max(mlp_dim, 3 * embed_dim)
        self.pos_embed = nn.Parameter(torch.randn(1, self.patches, embed_dim) * 0.02)
        self.patch_embed = PatchEmbed(embed_dim, patch_size)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_dim, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        if attention_pool:
            self.attn_pool = AttentionPool(embed_dim, mlp_dim)

    def forward(self, pixels: Tensor, *language: Tensor) -> Tensor:
        """Pixel values [B, 3, H, W] to features [B, S, D]; `language` is what FiLM blocks take besides."""
        x = self.patch_embed(pixels) + self.pos_embed
        prefix = [p.expand(len(x), -1, -1) for n, p in self.named_parameters(recurse=False) if n in _PREFIX]
        x = torch.cat([*prefix, x], dim=1)
        for block in self.blocks[:-1]:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, *language, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, *language)
        return x[:, self.prefix :]

    def shard_units(self) -> list[nn.Module]:
        """See `Tower.shard_units`: the blocks."""
        return list(self.blocks)

    def unused(self) -> list[nn.Parameter]:
        """The last block, the final norm and the pool."""
        pool = list(self.attn_pool.parameters()) if "attn_pool" in self._modules else []
        return [*self.blocks[-1].parameters(), *self.norm.parameters(), *pool]


_PREFIX = ("cls_token", "reg_token")


TOWERS: dict[str, tuple[Callable[..., Tower], dict[str, Any]]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": (
        ViT,
        {
            "embed_dim": 1024,
            "depth": 24,
            "num_heads": 16,
            "mlp_dim": 4096,
            "class_token": True,
            "registers": 4,
            "layer_scale": True,
        },
    ),
    "vit_so400m_patch14_siglip_224": (
        ViT,
        {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304, "attention_pool": True},
    ),
    "treadle_conv": (ConvTower, {"widths": [32, 64, 64, 64]}),
}
"""Tower kinds by the id that `timm_model_ids` of a checkpoint's config.json gives them, with their default sizes."""


def build_tower(model_id: str, image_size: tuple[int, int], overrides: dict[str, Any]) -> Tower:
    """The tower of an id. Raises CheckpointError for an id or a size that is not known."""
    if model_id not in TOWERS:
        raise CheckpointError(f"config.json: timm_model_ids has {model_id!r}; known: {', '.join(sorted(TOWERS))}")
    tower, defaults = TOWERS[model_id]
    sizes = {**defaults, **overrides}
    width, heads = sizes.get("embed_dim", 1), sizes.get("num_heads", 1)
    try:
        if not heads or width % heads:
            raise CheckpointError(
                f"config.json: treadle_tower_overrides of {model_id}: num_heads {heads} must divide embed_dim {width}"
            )
        return tower(image_size, **sizes)
    except TypeError as error:
        raise CheckpointError(f"config.json: treadle_tower_overrides of {model_id}: {error}") from error
