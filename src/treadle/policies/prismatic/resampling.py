"""Filters that bring frames to another size, each as the program that it is named after computes it.

Shapes: B samples, H x W pixels.
"""

import ctypes
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
"""Height and width."""


def pillow_bicubic(pixels: Tensor, size: Size) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8 by Pillow's bicubic filter: across, then down, each to whole
    levels.
    """
    if pixels.shape[1:3] == size:
        return pixels
    values = pixels.double()
    if pixels.shape[2] != size[1]:
        weights = _pillow_weights(pixels.shape[2], size[1]).to(pixels.device)
        values = _levels(torch.einsum("ow,bhwc->bhoc", weights, values))
    if pixels.shape[1] != size[0]:
        weights = _pillow_weights(pixels.shape[1], size[0]).to(pixels.device)
        values = _levels(torch.einsum("oh,bhwc->bowc", weights, values))
    return values.to(torch.uint8)


def torch_bicubic(pixels: Tensor, size: Size) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8 by torch's bicubic filter with antialiasing, as torchvision
    resizes tensors of bytes: rounded once, at the end.
    """
    if pixels.shape[1:3] == size:
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    resized = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def lanczos(pixels: Tensor, size: Size) -> Tensor:
    """Frames [B, H, W, 3] uint8 to [B, *size, 3] uint8 by TensorFlow's `lanczos3` filter with antialiasing: down, then
    across, in float32, rounded at the end. Terms are added in TensorFlow's order.
    """
    if pixels.shape[1:3] == size:
        return pixels
    values = pixels.float()
    for dim in (1, 2):
        places, weights = (part.to(pixels.device) for part in _lanczos_taps(values.shape[dim], size[dim - 1]))
        weights = weights.view(len(weights), *(-1 if dim == axis else 1 for axis in range(1, 4)))
        total = torch.zeros((), device=pixels.device)
        for place, weight in zip(places, weights, strict=True):
            total = total + weight * values.index_select(dim, place)
        values = total
    return values.round().clamp(0, 255).to(torch.uint8)


def _levels(values: Tensor) -> Tensor:
    """Whole levels, which is what Pillow keeps between its two passes."""
    return values.add(0.5).floor().clamp(0, 255)


@cache
def _pillow_weights(before: int, after: int) -> Tensor:
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


@cache
def _lanczos_taps(before: int, after: int) -> tuple[Tensor, Tensor]:
    """Pixels [T, after] that each new one is made of, and their weights [T, after], widened where shrinking. All
    arithmetic is in float32, as TensorFlow's is.
    """
    one, radius, pi = np.float32(1), np.float32(3), np.float32(np.pi)
    ratio = one / (np.float32(after) / np.float32(before))
    stretch = max(ratio, one)
    centre = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * ratio
    reach, half = radius * stretch, np.float32(0.5)
    first = np.clip(np.ceil(centre - reach - half), 0, before - 1).astype(np.int64)
    last = np.clip(np.floor(centre + reach - half), 0, before - 1).astype(np.int64)
    places = first + np.arange(int((last - first).max()) + 1)[:, None]
    x = np.abs((places.astype(np.float32) + half - centre) * (one / stretch))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = radius * _sine(pi * x) * _sine(pi * x / radius) / (pi * pi * x * x)
    values = np.where(x <= np.float32(1e-3), one, np.where((x > radius) | (places > last), np.float32(0), values))
    total = np.zeros(after, np.float32)
    for row in values:
        total += row
    weights = values * (one / total)
    return torch.from_numpy(np.minimum(places, before - 1)), torch.from_numpy(weights)


def _sine(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """By the C library's function for float32, as TensorFlow's is: NumPy's own differs in last bits."""
    sine = ctypes.CDLL(None).sinf
    sine.restype, sine.argtypes = ctypes.c_float, [ctypes.c_float]
    return np.array([sine(value) for value in x.ravel().tolist()], np.float32).reshape(x.shape)
