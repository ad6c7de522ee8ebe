"""Frames to pixel values: resize, then one normalisation per vision tower.

Shapes: B samples, H x W pixels.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def resize(frames: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8: bicubic with antialiasing, as Pillow's, no crop, no letterbox."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames))
    if pixels.shape[1:3] == size:
        return pixels
    channels_first = pixels.permute(0, 3, 1, 2)
    return F.interpolate(channels_first, size=size, mode="bicubic", antialias=True).permute(0, 2, 3, 1).contiguous()


def pixel_values(frames: Tensor, means: Tensor, stds: Tensor, dtype: torch.dtype) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, 3 * towers, H, W]: divided by 255, less mean, over std of each tower.

    `means` and `stds`: [towers, 3] float32.
    """
    unit = frames.permute(0, 3, 1, 2).float() / 255
    values = [(unit - mean[:, None, None]) / std[:, None, None] for mean, std in zip(means, stds, strict=True)]
    return torch.cat(values, dim=1).to(dtype) if len(values) > 1 else values[0].to(dtype)
