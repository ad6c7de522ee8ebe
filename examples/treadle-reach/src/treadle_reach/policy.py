"""A policy: normal actions from a small network on proprioception and a coarse picture.

Shapes: B samples, C actions of a chunk, A action dimensions, P proprioception, V values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal

from treadle.data import noise
from treadle.data.batch import TensorBatch
from treadle.policies import checkpoint
from treadle.policies.critic import ValueHead
from treadle.policies.protocol import Decision, Evaluation, Policy, Sampling

GRID = 8
"""The picture is averaged over GRID x GRID cells."""


@dataclass(slots=True)
class GaussianInputs(TensorBatch):
    """What the network reads."""

    numbers: Tensor
    """[B, P + 3 GRID^2] proprioception, and colours in [-1, 1]."""


class GaussianPolicy(Policy):
    """C actions of A dimensions around the network's means, with a learned deviation for each dimension. It looks
    through the first camera, and does not read the instruction.
    """

    kind = "gaussian"

    def __init__(
        self, *, proprioception_dim: int, action_dim: int, chunk: int = 2, width: int = 64, value_outputs: int = 0
    ) -> None:
        super().__init__()
        self.chunk, self.action_dim = chunk, action_dim
        self.sizes = {"proprioception_dim": proprioception_dim, "action_dim": action_dim}
        self.sizes |= {"chunk": chunk, "width": width}
        self.body = nn.Sequential(
            nn.Linear(proprioception_dim + 3 * GRID**2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        )
        self.mean = nn.Linear(width, chunk * action_dim)
        self.log_std = nn.Parameter(torch.full((action_dim,), -1.5))
        if value_outputs:
            self.add_value_head(value_outputs)

    @classmethod
    def load(cls, directory: Path, *, device: torch.device, dtype: torch.dtype | None, **_: Any) -> Self:
        """See `Policy.load`. Actions are in the simulator's units, so there are no statistics."""
        policy = cls(**checkpoint.read_json(directory / checkpoint.CONFIG)["treadle"]["sizes"])
        checkpoint.assign(policy, checkpoint.read_weights(directory, dtype, device), directory)
        return policy

    def save(self, directory: Path, *, merge: bool = True) -> None:
        """See `Policy.save`."""
        sizes = self.sizes | {"value_outputs": self.value_outputs}
        config = checkpoint.dump_json({"treadle": {"policy": self.kind, "sizes": sizes}})
        checkpoint.write_directory(directory, {checkpoint.CONFIG: config}, {checkpoint.WEIGHTS: self.state_dict()})

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        return self.value_head.last.out_features if "value_head" in self._modules else 0

    def add_value_head(self, outputs: int) -> None:
        """See `Policy.add_value_head`."""
        self.value_head = ValueHead(self.sizes["width"], (64,), outputs).to(self.device)

    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> GaussianInputs:
        """See `Policy.prepare`."""
        camera = frames[0] if isinstance(frames, list) else frames[:, 0]
        picture = torch.from_numpy(camera).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        cells = nn.functional.adaptive_avg_pool2d(picture, GRID).flatten(1)
        return GaussianInputs(torch.cat([torch.from_numpy(proprioception).to(self.device), cells], 1))

    def act(self, inputs: GaussianInputs, sampling: Sampling, keys: noise.Keys | None = None) -> Decision:
        """See `Policy.act`."""
        with torch.no_grad():
            density, values = self._decide(inputs, sampling)
            drawn = torch.randn(density.mean.shape)
            if keys is not None:
                drawn = torch.from_numpy(noise.normal(keys, self.chunk, self.action_dim))
            actions = density.mean + density.stddev * drawn.to(self.device) * (sampling.temperature > 0)
            return Decision(actions, actions, density.log_prob(actions), values)

    def evaluate(self, inputs: GaussianInputs, choice: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        density, values = self._decide(inputs, sampling)
        return Evaluation(density.log_prob(choice), density.entropy(), values)

    def values(self, inputs: GaussianInputs) -> Tensor:
        """See `Policy.values`."""
        return self.value_head(self.body(inputs.numbers))

    def _decide(self, inputs: GaussianInputs, sampling: Sampling) -> tuple[Normal, Tensor | None]:
        """The density of actions [B, C, A], and values [B, V]."""
        hidden = self.body(inputs.numbers)
        mean = self.mean(hidden).unflatten(1, (self.chunk, self.action_dim))
        scale = (self.log_std.exp() * (sampling.temperature or 1.0)).expand_as(mean)
        return Normal(mean, scale), self.value_head(hidden) if self.value_outputs else None
