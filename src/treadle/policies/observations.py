"""What every policy checks of the observations that it is given.

Shapes: B samples, P numbers of proprioception.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.errors import ConfigError


def check_observations(
    frames: NDArray[np.uint8] | list[NDArray[np.uint8]], instructions: list[str]
) -> list[NDArray[np.uint8]]:
    """The frames of each camera [B, H, W, 3]. Raises ConfigError for what the policy cannot take."""
    if isinstance(frames, np.ndarray) and frames.ndim == 5:
        cameras = [frames[:, camera] for camera in range(frames.shape[1])]
    elif isinstance(frames, list | tuple):
        cameras = list(frames)
    else:
        cameras = [frames]
    if not cameras:
        raise ConfigError("frames: no camera; the policy takes one at least")
    for camera in cameras:
        shape = list(getattr(camera, "shape", ()))
        fits = isinstance(camera, np.ndarray) and camera.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3
        if not fits or (isinstance(frames, np.ndarray) and frames.ndim != 5):
            found = f"{getattr(camera, 'dtype', type(camera).__name__)} {shape}"
            raise ConfigError(
                f"frames of a camera: {found}; they must be numpy arrays of uint8 [B, H, W, 3], red first: "
                "one [B, cameras, H, W, 3], or a list of one per camera"
            )
        if 0 in shape[1:3]:
            raise ConfigError(f"frames of a camera: {shape}; a side has no pixels")
    counts = [len(camera) for camera in cameras]
    if len(set(counts)) != 1:
        raise ConfigError(f"frames: cameras of {counts} samples; all must have as many")
    if not isinstance(instructions, list | tuple) or not all(isinstance(text, str) for text in instructions):
        raise ConfigError(f"instructions: {instructions!r}; they must be a list of texts, one for each sample")
    if len(instructions) != counts[0]:
        raise ConfigError(f"frames of {counts[0]} samples, instructions of {len(instructions)}")
    if not counts[0]:
        raise ConfigError("frames and instructions of no sample; give one at least")
    return cameras


def check_proprioception(proprioception: object, count: int, dimensions: int) -> Tensor:
    """Proprioception [count, dimensions] in robot units, float64. Raises ConfigError for what is missing, of another
    shape, or not finite.
    """
    if proprioception is None:
        raise ConfigError(f"the policy takes proprioception [B, {dimensions}]; none was given")
    try:
        raw = torch.from_numpy(np.array(proprioception, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"proprioception: no array of numbers: {error}") from error
    if raw.shape != (count, dimensions):
        raise ConfigError(
            f"proprioception {list(raw.shape)} of {count} samples; the policy takes {[count, dimensions]}"
        )
    for sample, number in torch.nonzero(~raw.isfinite()).tolist()[:1]:
        raise ConfigError(
            f"proprioception: number {number} of sample {sample} is {raw[sample, number]}; it must be finite"
        )
    return raw
