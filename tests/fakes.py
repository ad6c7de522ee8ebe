"""A policy whose every number can be worked out by hand, beside the simulator of `fake_simulator`.

Shapes: n slots addressed, C actions of a chunk, A action dimensions, K = C * A tokens.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fake_simulator import FakeSimulator, Script, scenario
from treadle.policies.protocol import Decision, Inputs, Sampling

__all__ = ["FakePolicy", "FakeSimulator", "Script", "StateCritic", "indices", "scenario", "state_values"]


@dataclass
class FakePolicy:
    """Actions and tokens are the noise; a value is 100 * index + steps, plus c for action c of the chunk."""

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
    ) -> Inputs:
        self.frames.append(torch.from_numpy(frames.copy()))
        self.instructions.append(list(instructions))
        ids = torch.zeros(len(frames), 1, dtype=torch.long)
        return Inputs(ids, ids == 0, frames=self.frames[-1], proprioception=torch.from_numpy(proprioception.copy()))

    def encode(self, inputs: Inputs) -> Inputs:
        assert inputs.frames is not None
        features = inputs.frames.float().flatten(1)[:, None]
        return Inputs(inputs.input_ids, inputs.attention_mask, None, features, inputs.proprioception)

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        shape = (len(inputs), self.chunk * self.action_dim)
        noise = torch.zeros(shape) if noise is None else noise
        assert noise.shape == shape
        actions = noise.reshape(len(inputs), self.chunk, self.action_dim)
        return Decision(actions, (noise * 256).long(), -noise, self._values(inputs))

    def values(self, inputs: Inputs) -> Tensor:
        self.valued.append(len(inputs))
        return self._values(inputs)

    def _values(self, inputs: Inputs) -> Tensor:
        assert inputs.proprioception is not None
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


class StateCritic:
    """The fake policy's values, read from the privileged state."""

    reads_state = True

    def __call__(self, inputs: Inputs | None, states: Tensor) -> Tensor:
        assert inputs is None
        return state_values(states)
