# torch leaves from_numpy untyped.
# pyright: reportUnknownMemberType=false
"""A small MLP as a policy: what benchmarks of the collector need.

Shapes: B samples, F numbers that the MLP reads.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.paced import ACTIONS, PROPRIOCEPTION, spin
from treadle.data.batch import TensorBatch
from treadle.data.noise import Keys
from treadle.policies.protocol import Decision, Sampling

_PIXELS = 8
"""The MLP sees so many pixels of a frame's rows and columns, evenly spaced: it costs the same whatever their size."""


@dataclass(slots=True)
class SmallInputs(TensorBatch):
    """Frames and proprioception, or features."""

    frames: Tensor | None = None
    """[B, 1, H, W, 3] uint8."""
    proprioception: Tensor | None = None
    """[B, P]"""
    features: Tensor | None = None
    """[B, F], in place of both."""


class SmallPolicy(nn.Module):
    """Two hidden layers on proprioception and a thinned frame; a decision takes `seconds` more for each sample.

    It has what the collector asks of a policy, no more: it is not trained.
    """

    chunk = 1
    action_dim = ACTIONS

    def __init__(self, image_size: int, seconds: float = 0.0) -> None:
        super().__init__()
        self._stride = -(-image_size // _PIXELS)
        pixels = 3 * len(range(0, image_size, self._stride)) ** 2
        widths = (PROPRIOCEPTION + pixels, 64, 64, ACTIONS)
        layers = [nn.Linear(*pair) for pair in pairwise(widths)]
        # Pixels are given as they are, from 0 to 255.
        layers[0].weight.data[:, PROPRIOCEPTION:] /= 255
        # Bare tensors: calls of modules cost more than layers of this size.
        self._layers = [(layer.bias.detach(), layer.weight.detach().t()) for layer in layers]
        self._seconds = seconds

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._layers[0][0].device

    def prepare(
        self, frames: NDArray[np.uint8], instructions: list[str], proprioception: NDArray[np.float32]
    ) -> SmallInputs:
        """The frames as they lie, without a copy."""
        return SmallInputs(torch.from_numpy(frames), torch.from_numpy(proprioception))

    def encode(self, inputs: SmallInputs) -> SmallInputs:
        """Thinned frames and proprioception in place of frames."""
        assert inputs.frames is not None
        assert inputs.proprioception is not None
        thinned = inputs.frames[:, :, :: self._stride, :: self._stride].flatten(1)
        return SmallInputs(features=torch.cat([inputs.proprioception, thinned], 1))

    def act(self, inputs: SmallInputs, sampling: Sampling, keys: Keys | None = None) -> Decision:
        """Two numbers for each sample."""
        assert inputs.features is not None
        if self._seconds:
            spin(self._seconds * len(inputs))
        x = inputs.features
        *hidden, last = self._layers
        for bias, weight in hidden:
            x = torch.addmm(bias, x, weight).tanh_()
        actions = torch.addmm(last[0], x, last[1])[:, None]
        return Decision(actions, actions.long(), torch.zeros_like(actions), None)
