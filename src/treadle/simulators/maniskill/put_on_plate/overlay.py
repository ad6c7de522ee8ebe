"""The green screen: arm and things of a rendered frame before the photo of a table, and textures mixed in.

Shapes: R rows, H and W pixels.
"""

from typing import Any

import torch
from torch.nn.functional import interpolate

from treadle.simulators.maniskill.put_on_plate.settings import Effect


def compose(frame: Any, front: Any, photo: Any) -> Any:
    """[H, W, 3] the frame where `front` [H, W] says so, the photo elsewhere; floats."""
    return torch.where(front[..., None], frame, photo)


def blend(image: Any, front: Any, texture: Any, share: float, effect: Effect) -> Any:
    """Mix a texture [h, w, 3] into an image [H, W, 3]: where `front` is, stretched over the box around it (`texture`),
    or everywhere, from a window that follows the middle of that box over a texture of twice the image's size (`whole`).
    """
    if not share or not bool(front.any()):
        return image
    height, width = front.shape
    rows, columns = torch.nonzero(front.any(1))[:, 0], torch.nonzero(front.any(0))[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
    if effect == "texture":
        mixed = image.clone()
        cut = slice(top, bottom + 1), slice(left, right + 1)
        fitted = _resize(texture, bottom - top + 1, right - left + 1)
        mixed[cut] = torch.where(front[cut][..., None], share * fitted + (1 - share) * image[cut], image[cut])
        return mixed
    y, x = max((top + bottom) // 2, 1), max((left + right) // 2, 1)
    return share * texture[y : y + height, x : x + width] + (1 - share) * image


def finish(images: Any) -> Any:
    """uint8 [R, H, W, 3] of float images from 0 to 255. Fractions are cut off, as in the published environments."""
    return images.clamp(0, 255).to(torch.uint8)


def shrink(images: Any, size: int) -> Any:
    """uint8 [R, size, size, 3] of uint8 images [R, H, W, 3], averaged over what a pixel covers."""
    if images.shape[1:3] == (size, size):
        return images
    planes = images.float().permute(0, 3, 1, 2)
    smaller = interpolate(planes, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    return smaller.round().clamp(0, 255).to(torch.uint8)


def _resize(texture: Any, height: int, width: int) -> Any:
    planes = texture.permute(2, 0, 1)[None]
    return interpolate(planes, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
