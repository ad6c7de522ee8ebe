"""What values observations: the policy's own head, or a small network on the simulator's privileged state.

Shapes: B observations, S privileged state, V values (one per action of the chunk, or one).
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from treadle.policies.protocol import Inputs, Policy


class Critic(Protocol):
    """Values observations."""

    reads_state: bool
    """It reads the privileged state alone; else model inputs alone, and acting yields its values on the way."""

    def __call__(self, inputs: Inputs | None, state: Tensor) -> Tensor:
        """Values [B, V] of B observations, given as model inputs and as privileged state [B, S]."""
        ...


class ValueHeadCritic:
    """The value head on the policy's last prompt token, as published."""

    reads_state = False

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, inputs: Inputs | None, state: Tensor) -> Tensor:
        """See `Critic`."""
        assert inputs is not None
        return self._policy.values(inputs)


class PrivilegedCritic(nn.Module):
    """Two hidden layers on the simulator's state, which a policy never sees; an asymmetric critic (Pinto et al. 2017).

    Args:
        state_dim: S.
        values: V.
        width: hidden units of each layer.
    """

    reads_state = True

    def __init__(self, state_dim: int, values: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(state_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, values)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, inputs: Inputs | None, state: Tensor) -> Tensor:
        """See `Critic`."""
        return self.layers(state.to(torch.float32))
