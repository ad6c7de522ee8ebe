"""Frames to pixel values, as the official code prepares them: resize, crop, then one normalisation per vision tower.

All of it runs in batches, where the frames are. Shapes: B samples, H x W pixels.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from treadle.policies.prismatic.jpeg import recompress
from treadle.policies.prismatic.resampling import Size, lanczos, pillow_bicubic, torch_bicubic

Resize = Literal["pillow", "torch", "jpeg-lanczos", "crop"]
"""How frames come to the size that the towers see: by Pillow's bicubic filter; by torch's; through JPEG and a Lanczos
filter, as in the data that published policies have learned from; or by the crop itself, in one bilinear step.
"""

Strategy = Literal["resize-naive", "letterbox", "resize-crop"]
"""How frames that are not square become square: each side stretched on its own; bars added; or the middle cut out."""
NAIVE: Strategy = "resize-naive"


def prepare(
    pixels: Tensor, size: Size, resize: Resize, strategy: Strategy, fill: tuple[int, int, int], share: float
) -> Tensor:
    """Frames [B, H, W, 3] uint8 to what towers see, before the normalisation: [B, *size, 3] uint8. See `fit` for
    `strategy` and `fill`, and `crop_centre` for `share`.

    Frames that have the size already are neither resized nor compressed.
    """
    if resize == "crop":
        return crop_centre(pixels, share, size)
    if resize == "jpeg-lanczos" and pixels.shape[1:3] != size:
        # The frame is stretched to the square, whatever the strategy: so are those of the data.
        pixels = lanczos(recompress(pixels), size)
    scale = torch_bicubic if resize == "torch" else pillow_bicubic
    return crop_centre(fit(pixels, size, strategy, fill, scale), share, size)


def fit(
    pixels: Tensor,
    size: Size,
    strategy: Strategy,
    fill: tuple[int, int, int],
    resize: Callable[[Tensor, Size], Tensor] = pillow_bicubic,
) -> Tensor:
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


def crop_centre(pixels: Tensor, share: float, size: Size) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8: the middle `share` of their area, by bilinear interpolation.

    Each side keeps the square root of the share, as in the evaluation of OpenVLA-OFT, whose roundings are followed.
    """
    if share == 1 and pixels.shape[1:3] == size:
        return pixels
    sides = zip(pixels.shape[1:3], size, strict=True)
    (top, bottom, down), (left, right, across) = (_between(*side, share, pixels.device) for side in sides)
    unit = pixels.float() * (1 / 255)
    down, across = down[:, None, None], across[:, None]
    upper, lower = unit[:, top], unit[:, bottom]
    upper = upper[:, :, left] + (upper[:, :, right] - upper[:, :, left]) * across
    lower = lower[:, :, left] + (lower[:, :, right] - lower[:, :, left]) * across
    return ((upper + (lower - upper) * down).clamp(0, 1) * 255.5).to(torch.uint8)


def _between(before: int, after: int, share: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of `after` samples along a cropped side of `before` pixels: the pixel before it, the one behind it, and
    the way between them.
    """
    # In float64 and then rounded: torch's float32 square root is not the nearest number on every processor.
    kept = torch.tensor(share).double().sqrt().float()
    first = (1 - kept) / 2
    step = (first + kept - first) * (before - 1) / (after - 1)
    place = first * (before - 1) + torch.arange(after) * step
    lower = place.floor()
    return lower.long().to(device), place.ceil().long().to(device), (place - lower).to(device)


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
