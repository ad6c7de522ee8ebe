"""SigLIP and the connector, with the parameter names of published checkpoints.

Shapes: B images, S patches, D width of vision, N tokens of an image, W width of the language model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.policies.smolvla.sizes import Sizes


def fit(images: Tensor, height: int, width: int) -> Tensor:
    """Images [B, 3, h, w] in [0, 1] to [B, 3, height, width] in [-1, 1]: bilinear, with bars on the left and top."""
    ratio = max(images.shape[3] / width, images.shape[2] / height)
    size = (int(images.shape[2] / ratio), int(images.shape[3] / ratio))
    resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return F.pad(resized, (max(0, width - size[1]), 0, max(0, height - size[0]), 0)) * 2.0 - 1.0


class Embeddings(nn.Module):
    """Patches and their learned positions, counted from 0.

    So does lerobot 0.4.4 with vision in bfloat16, as published. With vision in float32, transformers 4.57 puts patch i
    of a side at position i - 1 (it looks up (i / n)(1 - 1e-6), which bfloat16 rounds up to i / n), and differs.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.vision_width, sizes.patch, sizes.patch)
        self.position_embedding = nn.Embedding((sizes.image // sizes.patch) ** 2, sizes.vision_width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, S, D]."""
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Self-attention of all patches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    """Two layers, GELU by tanh between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    """A pre-norm block."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.self_attn = VisionAttention(sizes.vision_width, sizes.vision_heads)
        self.layer_norm1 = nn.LayerNorm(sizes.vision_width, eps=1e-6)
        self.mlp = VisionMlp(sizes.vision_width, sizes.vision_mlp)
        self.layer_norm2 = nn.LayerNorm(sizes.vision_width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The blocks."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(sizes) for _ in range(sizes.vision_layers))


class VisionModel(nn.Module):
    """SigLIP without a class token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = Embeddings(sizes)
        self.encoder = Encoder(sizes)
        self.post_layernorm = nn.LayerNorm(sizes.vision_width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to [B, S, D], in the type of the weights."""
        x = self.embeddings(pixels.to(self.post_layernorm.weight.dtype))
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Projection(nn.Module):
    """From a square of patches to the width of the language model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.proj = nn.Linear(sizes.vision_width * sizes.shuffle**2, sizes.width, bias=False)


class Connector(nn.Module):
    """Squares of patches become one token."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.scale = sizes.shuffle
        self.modality_projection = Projection(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, N, W], with N = S / scale^2."""
        side, scale = int(x.shape[1] ** 0.5), self.scale
        grid = x.unflatten(1, (side // scale, scale, side // scale, scale))
        joined = grid.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return self.modality_projection.proj(joined)


def embed_images(vision: VisionModel, connector: Connector, pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] to tokens [B, N, W], as large as the language model's words are made."""
    tokens = connector(vision(pixels))
    return tokens * torch.tensor(tokens.shape[-1] ** 0.5, dtype=tokens.dtype, device=tokens.device)
