"""A policy whose every number can be worked out by hand, beside the simulator of `fake_simulator`.

Shapes: n slots addressed, C actions of a chunk, A action dimensions, K = C * A tokens.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fake_simulator import FakeSimulator, Script, scenario
from treadle.data import noise
from treadle.data.batch import TensorBatch
from treadle.policies.protocol import Decision
from treadle.policies.sampling import Sampling

__all__ = ["FakeInputs", "FakePolicy", "FakeSimulator", "Script", "indices", "scenario", "state_values"]


@dataclass(slots=True)
class FakeInputs(TensorBatch):
    proprioception: Tensor
    frames: Tensor | None = None
    features: Tensor | None = None


@dataclass
class FakePolicy:
    """Actions are the noise of the keys, or 0 at temperature 0; a value is 100 * index + steps, plus c for action c of
    the chunk.
    """

    chunk: int = 2
    action_dim: int = 2
    value_outputs: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    frames: list[Tensor] = field(default_factory=list)
    instructions: list[list[str]] = field(default_factory=list)
    valued: list[int] = field(default_factory=list)
    """Rows of each call of `values`."""

    def prepare(
        self, frames: NDArray[np.uint8], instructions: list[str], proprioception: NDArray[np.float32]
    ) -> FakeInputs:
        self.frames.append(torch.from_numpy(frames.copy()))
        self.instructions.append(list(instructions))
        return FakeInputs(torch.from_numpy(proprioception.copy()), frames=self.frames[-1])

    def encode(self, inputs: FakeInputs) -> FakeInputs:
        assert inputs.frames is not None
        return FakeInputs(inputs.proprioception, features=inputs.frames.float().flatten(1)[:, None])

    @property
    def entries(self) -> tuple[int, int]:
        return self.chunk, self.action_dim

    def act(self, inputs: FakeInputs, sampling: Sampling, keys: noise.Keys | None = None) -> Decision:
        actions = torch.zeros(len(inputs), *self.entries)
        if keys is not None:
            assert len(keys) == len(inputs)
        if keys is not None and sampling.temperature:
            actions = torch.from_numpy(noise.uniform(keys, *self.entries))
        return Decision(actions, (actions * 256).long().flatten(1), -actions, self._values(inputs))

    def values(self, inputs: FakeInputs) -> Tensor:
        self.valued.append(len(inputs))
        return self._values(inputs)

    def _values(self, inputs: FakeInputs) -> Tensor:
        return state_values(inputs.proprioception[:, None]) + torch.arange(self.value_outputs)

    def eval(self) -> "FakePolicy":
        return self


def indices(scenarios: NDArray[np.object_]) -> NDArray[np.int64]:
    """Each scenario's index, -1 where there is none; of any shape."""
    found = [-1 if scenario is None else scenario.index for scenario in scenarios.flat]
    return np.array(found, np.int64).reshape(scenarios.shape)


def state_values(states: Tensor) -> Tensor:
    """[.., 1] values 100 * index + steps of the first of states [.., C, S]."""
    return 100 * states[..., :1, 0] + states[..., :1, 1]
