"""Frames to pixel values, as the official code prepares them: resize, crop, then one normalisation per vision tower.

All of it runs in batches, where the frames are. Shapes: B samples, H x W pixels.
"""

from functools import cache
from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["resize-naive", "letterbox", "resize-crop"]
"""How frames that are not square become square: each side stretched on its own; bars added; or the middle cut out."""
NAIVE: Strategy = "resize-naive"


def fit(pixels: Tensor, size: tuple[int, int], strategy: Strategy, fill: tuple[int, int, int]) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8; `fill` is the colour of the bars of a letterbox."""
    if strategy == "resize-naive":
        return resize(pixels, size)
    if strategy == "letterbox":
        pixels = _letterbox(pixels, fill)
    height, width = pixels.shape[1:3]
    short, side = min(height, width), min(size)
    # The longer side keeps its share, rounded down; its middle is kept.
    pixels = resize(pixels, (int(side * height / short), int(side * width / short)))
    top, left = (round((have - want) / 2) for have, want in zip(pixels.shape[1:3], size, strict=True))
    return pixels[:, top : top + size[0], left : left + size[1]]


def _letterbox(pixels: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Bars of equal width on both sides of the shorter direction; with an odd difference one pixel is left over."""
    batch, height, width, _ = pixels.shape
    longest = max(height, width)
    above, beside = (longest - height) // 2, (longest - width) // 2
    if not above and not beside:
        return pixels
    colour = torch.tensor(fill, dtype=torch.uint8, device=pixels.device)
    padded = colour.expand(batch, height + 2 * above, width + 2 * beside, 3).clone()
    padded[:, above : above + height, beside : beside + width] = pixels
    return padded


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8 as Pillow's bicubic does, no crop, no letterbox."""
    if pixels.shape[1:3] == size:
        return pixels
    values = pixels.double()
    if pixels.shape[2] != size[1]:
        weights = _weights(pixels.shape[2], size[1]).to(pixels.device)
        values = _levels(torch.einsum("ow,bhwc->bhoc", weights, values))
    if pixels.shape[1] != size[0]:
        weights = _weights(pixels.shape[1], size[0]).to(pixels.device)
        values = _levels(torch.einsum("oh,bhwc->bowc", weights, values))
    return values.to(torch.uint8)


def crop_centre(pixels: Tensor, share: float) -> Tensor:
    """Frames [B, H, W, 3] uint8: the middle `share` of their area, stretched to the whole by bilinear interpolation.

    Each side keeps the square root of the share, as in the evaluation of OpenVLA-OFT, whose roundings are followed.
    """
    if share == 1:
        return pixels
    (top, bottom, down), (left, right, across) = (_between(n, share, pixels.device) for n in pixels.shape[1:3])
    unit = pixels.float() * (1 / 255)
    down, across = down[:, None, None], across[:, None]
    upper, lower = unit[:, top], unit[:, bottom]
    upper = upper[:, :, left] + (upper[:, :, right] - upper[:, :, left]) * across
    lower = lower[:, :, left] + (lower[:, :, right] - lower[:, :, left]) * across
    return ((upper + (lower - upper) * down).clamp(0, 1) * 255.5).to(torch.uint8)


def _between(size: int, share: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of `size` samples along a cropped side: the pixel before, the pixel after, and the way between them."""
    # In float64 and then rounded: torch's float32 square root is not the nearest number on every processor.
    kept = torch.tensor(share).double().sqrt().float()
    first = (1 - kept) / 2
    step = (first + kept - first) * (size - 1) / (size - 1)
    place = first * (size - 1) + torch.arange(size) * step
    before = place.floor()
    return before.long().to(device), place.ceil().long().to(device), (place - before).to(device)


def _levels(values: Tensor) -> Tensor:
    """Whole levels, which is what Pillow keeps between its two passes."""
    return values.add(0.5).floor().clamp(0, 255)


@cache
def _weights(before: int, after: int) -> Tensor:
    """Bicubic resampling weights [after, before], widened where shrinking, in Pillow's 22-bit fixed point."""
    ratio = before / after
    stretch = max(ratio, 1.0)
    centre = (torch.arange(after, dtype=torch.float64)[:, None] + 0.5) * ratio
    pixel = torch.arange(before, dtype=torch.float64)
    first, last = (centre - 2 * stretch + 0.5).floor(), (centre + 2 * stretch + 0.5).floor()
    x = ((pixel + 0.5 - centre) / stretch).abs()
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))
    weights = torch.where((pixel >= first) & (pixel < last), weights, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights.abs() * 2**22 + 0.5).floor() * weights.sign() / 2**22


def pixel_values(frames: Tensor, means: Tensor, stds: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Frames [B, H, W, 3] uint8 to what each tower sees, [B, 3, H, W]: divided by 255, less its mean, over its std.

    Channels lie last in memory, as in the frames; towers that agree share theirs. `means` and `stds`: [towers, 3]
    float32.
    """
    across = frames.shape[2]
    unit = frames.flatten(2).float().div_(255)
    seen: dict[tuple[float, ...], Tensor] = {}
    keys = [(*mean, *std) for mean, std in zip(means.tolist(), stds.tolist(), strict=True)]
    for key, mean, std in zip(keys, means, stds, strict=True):
        if key not in seen:
            # A row of an image at a time: three channels alone would be too short a loop.
            values = (unit - mean.repeat(across)).div_(std.repeat(across)).to(dtype)
            seen[key] = values.unflatten(2, (across, 3)).permute(0, 3, 1, 2)
    return [seen[key] for key in keys]
