"""Eyes that a policy may have: towers behind one interface, small ones that a CPU trains, and projectors of their
features to the width of a language model.

Shapes: B images, S patches, D width of a tower.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tower(nn.Module):
    """A tower: its forward takes pixel values [B, 3, H, W], normalised, to features [B, S, D]."""

    width: int
    """D."""
    patches: int
    """S."""
    largest: int
    """Numbers in the largest activation of an image."""
    recompute = False
    """Compute blocks again in the backward pass instead of keeping what is in them (gradient checkpointing)."""

    def unused(self) -> list[nn.Parameter]:
        """Parameters that are stored but take no part in the output, hence get no gradient."""
        return []

    def shard_units(self) -> list[nn.Module]:
        """See `Policy.shard_units`: the whole tower by default."""
        return [self]


class ConvTower(Tower):
    """Stride-2 convolutions with GELU, then a learned position embedding: sees well at a size that a CPU can train."""

    def __init__(
        self, image_size: tuple[int, int], *, widths: list[int], kernel_size: int = 4, group_norm: int = 0
    ) -> None:
        """`widths`: channels after each convolution, each of which halves the image. `group_norm`: groups, 0 none."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            layers.append(nn.Conv2d(channels, width, kernel_size, stride=2, padding=1))
            if group_norm:
                layers.append(nn.GroupNorm(group_norm, width))
            layers.append(nn.GELU())
            channels = width
        self.width = channels
        height, across = image_size
        self.patches = (height >> len(widths)) * (across >> len(widths))
        self.largest = max(
            channels * (height >> place) * (across >> place) for place, channels in enumerate((3, *widths))
        )
        self.stem = nn.Sequential(*layers)
        self.pos_embed = nn.Parameter(torch.randn(1, self.patches, channels) * 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixel values [B, 3, H, W] to features [B, S, D]."""
        # A third faster on a CPU than channels first.
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.stem(pixels).flatten(2).transpose(1, 2) + self.pos_embed


class VisionProjector(nn.Module):
    """GELU between linear layers: fc1..fc3 behind two fused towers, fc1 and fc2 behind one."""

    def __init__(self, vision_width: int, width: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_width if fused else width
        self.fc1 = nn.Linear(vision_width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.fc3 = nn.Linear(width, width) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """[B, S, vision_width] to [B, S, width]."""
        hidden = self.fc2(F.gelu(self.fc1(features)))
        return hidden if self.fc3 is None else self.fc3(F.gelu(hidden))
