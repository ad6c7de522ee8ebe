"""What a SmolVLA reads: cameras, an instruction and proprioception, in one of three forms.

Shapes: B samples, L ids of a prompt, S tokens of all cameras, N columns of images and prompt, W width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.batch import TensorBatch
from treadle.errors import ConfigError
from treadle.policies.observations import check_observations
from treadle.policies.smolvla.model import Prefix, SmolVLAModel
from treadle.policies.smolvla.vision import fit


@dataclass(slots=True)
class SmolVLAInputs(TensorBatch):
    """Inputs of B samples. One of `frames`, `features`, or `keys` with `cached_values` is there."""

    state: Tensor
    """[B, padded] float32, normalised."""
    ids: Tensor
    """[B, L] int64, padded on the right."""
    mask: Tensor
    """[B, L] bool."""
    frames: Tensor | None = None
    """[B, cameras, height, width, 3] uint8, RGB; smaller cameras fill the upper left."""
    sides: Tensor | None = None
    """[B, cameras, 2] height and width of each camera."""
    features: Tensor | None = None
    """[B, S, W] tokens of all cameras."""
    keys: Tensor | None = None
    """[B, layers, N, key heads, head] of images and prompt."""
    cached_values: Tensor | None = None
    """The same of values."""


def stack_frames(cameras: list[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
    """`frames` and `sides` of an array [B, H, W, 3] for each camera."""
    height, width = (max(camera.shape[axis] for camera in cameras) for axis in (1, 2))
    frames = np.zeros((len(cameras[0]), len(cameras), height, width, 3), np.uint8)
    for place, camera in enumerate(cameras):
        frames[:, place, : camera.shape[1], : camera.shape[2]] = camera
    sides = torch.tensor([camera.shape[1:3] for camera in cameras])
    return torch.from_numpy(frames), sides.expand(len(frames), -1, -1).clone()


def make_pixels(inputs: SmolVLAInputs, side: int) -> list[Tensor]:
    """Images [B, 3, side, side] in [-1, 1] of each camera. Raises ConfigError without frames."""
    if inputs.frames is None or inputs.sides is None:
        raise ConfigError("inputs: neither frames nor features; give what the policy's own prepare or encode returned")
    pixels: list[Tensor] = []
    for place, (height, width) in enumerate(inputs.sides[0].tolist()):
        camera = inputs.frames[:, place, :height, :width].permute(0, 3, 1, 2)
        pixels.append(fit(camera.float() / 255, side, side))
    return pixels


def read_features(model: SmolVLAModel, inputs: SmolVLAInputs) -> Tensor:
    """Tokens [B, S, W] of all cameras, with gradient where enabled."""
    if inputs.features is not None:
        return inputs.features
    return model.embed_images(make_pixels(inputs, model.sizes.image))


def read_prefix(model: SmolVLAModel, inputs: SmolVLAInputs) -> Prefix:
    """What the expert reads, with gradient where enabled. Of cached keys and values only the state's column is new."""
    if inputs.keys is None or inputs.cached_values is None:
        context = model.embed_context(read_features(model, inputs), inputs.ids, inputs.mask)
        return model.read_prefix(*model.join_state(*context, inputs.state))
    images = inputs.keys.shape[2] - inputs.mask.shape[1]
    valid = torch.cat([inputs.mask.new_ones(len(inputs), images), inputs.mask], 1)
    cached = Prefix(list(inputs.keys.unbind(1)), list(inputs.cached_values.unbind(1)), valid)
    return model.read_state(cached, inputs.state)


def check_frames(
    frames: NDArray[np.uint8] | list[NDArray[np.uint8]], instructions: list[str], known: int
) -> list[NDArray[np.uint8]]:
    """The frames of each camera [B, H, W, 3]. Raises ConfigError for what the policy cannot take."""
    cameras = check_observations(frames, instructions)
    if len(cameras) != known:
        raise ConfigError(
            f"frames of {len(cameras)} cameras, the policy sees {known}; let the simulator show as many "
            f"(simulator.options), or set policy.options.cameras={len(cameras)}"
        )
    return cameras
