"""What values observations: the policy's own head, or a small network on the simulator's privileged state.

Shapes: B observations, S privileged state, C actions of the chunk, V values (one per action, or one).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """A small MLP on the hidden state of the last prompt token: width -> hidden ... -> outputs, GELU between.

    The last layer starts at zero, so the first values are 0. `outputs` V is 1 (a value per decision) or C (a value per
    action of the chunk). Runs in float32.
    """

    def __init__(self, width: int, hidden: tuple[int, ...] = (512, 128), outputs: int = 1) -> None:
        super().__init__()
        sizes = (width, *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(sizes[-1], outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, width] to values [B, V] float32."""
        return self.last(self.body(hidden.float()))


class PrivilegedCritic(nn.Module):
    """Two hidden layers on the simulator's state, which a policy never sees; an asymmetric critic (Pinto et al. 2017).

    Where values belong to actions, each is that of the state right before its action, inside a chunk too, where the
    policy sees nothing: a far better baseline than the state at the chunk's start, and still independent of the action.
    The position in the chunk is an input, for as many further actions are already decided. `width`: hidden units of
    each layer.
    """

    def __init__(self, state_dim: int, values: int, width: int) -> None:
        super().__init__()
        self._values = values
        self.layers = nn.Sequential(
            nn.Linear(state_dim + values, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Values [B, up to V] of B observations' states [B, up to C, S], that before each action of the chunk; as many
        actions are valued as states are given, at most V.
        """
        states = states[:, : self._values].to(torch.float32)
        position = torch.eye(self._values, device=states.device)[: states.shape[1]].expand(len(states), -1, -1)
        return self.layers(torch.cat([states, position], -1))[..., 0]
