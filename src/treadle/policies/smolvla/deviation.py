"""A learned standard deviation of every number of a chain (Flow-Noise of pi-RL, arXiv:2510.25889; ReinFlow,
arXiv:2505.22094).
"""

import math

from torch import Tensor, nn


class DeviationHead(nn.Module):
    """A small network on the expert's hidden states, in float32. Its last layer starts at zero, so that the first
    deviation is the geometric mean of the bounds.

    Args:
        width: of hidden states.
        dimensions: D, numbers of an action.
        low: least deviation.
        high: greatest deviation.
    """

    def __init__(self, width: int, dimensions: int, low: float, high: float) -> None:
        super().__init__()
        self._bounds = 2 * math.log(low), 2 * math.log(high)
        sizes = (width, 128, 64)
        self.body = nn.Sequential(nn.Linear(sizes[0], sizes[1]), nn.Tanh(), nn.Linear(sizes[1], sizes[2]), nn.Tanh())
        self.last = nn.Linear(sizes[2], dimensions)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, H, width] to deviations [B, H, D] float32."""
        low, high = self._bounds
        variance = low + (high - low) * (self.last(self.body(hidden.float())).tanh() + 1) / 2
        return (variance / 2).exp()
