"""The value head: a small MLP on the hidden state of the last prompt token."""

from torch import Tensor, nn


class ValueHead(nn.Module):
    """width -> hidden ... -> outputs, GELU between. The last layer starts at zero, so the first values are 0.

    `outputs` V is 1 (a value per decision) or C (a value per action of the chunk). Runs in float32.
    """

    def __init__(self, width: int, hidden: tuple[int, ...] = (512, 128), outputs: int = 1) -> None:
        super().__init__()
        sizes = (width, *hidden)
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(before, after), nn.GELU()]
        last = nn.Linear(sizes[-1], outputs)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, width] to values [B, V] float32."""
        return self.layers(hidden.float())
