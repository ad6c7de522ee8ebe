"""The value head: a small MLP on the hidden state of the last prompt token."""

from itertools import pairwise

from torch import Tensor, nn


class ValueHead(nn.Module):
    """width -> hidden ... -> outputs, GELU between. The last layer starts at zero, so the first values are 0.

    `outputs` V is 1 (a value per decision) or C (a value per action of the chunk). Runs in float32.
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
