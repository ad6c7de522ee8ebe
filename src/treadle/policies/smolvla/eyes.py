"""Small convolutional towers in place of SigLIP, those of the packaged checkpoint, for tiny policies."""

import torch
from torch import Tensor, nn

from treadle.policies.smolvla.sizes import Sizes
from treadle.policies.towers import ConvTower, VisionProjector

NAMES = ("featurizer", "fused_featurizer")
"""Of the towers, as the packaged checkpoint has them."""


class Eyes(nn.Module):
    """One or two towers and a projector."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.towers = nn.Module()
        made = [ConvTower((sizes.image, sizes.image), widths=list(widths)) for widths in sizes.towers]
        for name, tower in zip(NAMES, made, strict=False):
            self.towers.add_module(name, tower)
        self.projector = VisionProjector(sum(tower.width for tower in made), sizes.width, fused=len(made) == 2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] to tokens [B, S, W]."""
        return self.projector(torch.cat([tower(pixels) for tower in self.towers.children()], -1))
