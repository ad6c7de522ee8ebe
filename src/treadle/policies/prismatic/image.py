"""Frames to pixel values, as the official code prepares them: resize, crop, then one normalisation per vision tower.

All of it runs in batches, where the frames are. Shapes: B samples, H x W pixels.
"""

import json
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from treadle.errors import CheckpointError

PREPROCESSOR = "preprocessor_config.json"


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


def read_normalization(files: Mapping[str, bytes], towers: int) -> tuple[Tensor, Tensor]:
    """Means and stds, each [towers, 3], of `preprocessor_config.json` among `files`.

    What applies is `tvf_normalize_params`; the `means` and `stds` beside it are the unrounded values.
    """
    if PREPROCESSOR not in files:
        raise CheckpointError(f"{PREPROCESSOR}: missing; it holds the image normalisation of each tower")
    try:
        entries = json.loads(files[PREPROCESSOR])["tvf_normalize_params"]
        means, stds = (torch.tensor([entry[key] for entry in entries[:towers]]) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{PREPROCESSOR}: no tvf_normalize_params with mean and std: {error!r}") from error
    if means.shape != (towers, 3) or stds.shape != (towers, 3):
        raise CheckpointError(f"{PREPROCESSOR}: tvf_normalize_params has {len(means)} entries for {towers} towers")
    return means, stds


def make_preprocessor(size: tuple[int, int], towers: int) -> bytes:
    """A `preprocessor_config.json` that scales pixels to [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    content = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, *size]] * towers,
        "interpolations": ["bicubic"] * towers,
        "means": [half] * towers,
        "stds": [half] * towers,
        "tvf_normalize_params": [{"inplace": False, "mean": half, "std": half}] * towers,
        "use_fused_vision_backbone": towers == 2,
    }
    return (json.dumps(content, indent=2) + "\n").encode()
