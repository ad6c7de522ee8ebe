"""Actions as tokens: the last 256 ids of the vocabulary, and the scaling between robot units and [-1, 1].

Shapes: C actions of a chunk, A action dimensions, K = C * A tokens. Source: OpenVLA, arXiv:2406.09246, section 3.2.
"""

import torch
from torch import Tensor

from treadle.policies.statistics import Range

BINS = 256
"""Action tokens; they delimit BINS - 1 bins."""


class ActionCodec:
    """Action tokens to actions and back. A higher id is a lower value."""

    def __init__(self, vocabulary: int, chunk: int, scale: Range) -> None:
        """`vocabulary`: ids before the padded end; the action tokens are the last 256 of them."""
        self.vocabulary = vocabulary
        self.chunk = chunk
        self.scale = scale
        self._edges = torch.linspace(-1.0, 1.0, BINS, dtype=torch.float64)
        self._centres = (self._edges[1:] + self._edges[:-1]) / 2

    @property
    def first_id(self) -> int:
        """The lowest action token id; `id - first_id` is the row among the 256."""
        return self.vocabulary - BINS

    def normalized(self, tokens: Tensor) -> Tensor:
        """Bin centres in (-1, 1) of token ids [...], float64 [...]."""
        index = (self.vocabulary - tokens - 1).clamp(0, BINS - 2)
        return self._centres.to(tokens.device)[index]

    def quantize(self, normalized: Tensor) -> Tensor:
        """Token ids of values in [-1, 1], clipped; the centre of the bin a value lies in is the nearest one."""
        values = normalized.to(torch.float64).clamp(-1.0, 1.0)
        return self.vocabulary - torch.bucketize(values, self._edges.to(values.device), right=True)

    def decode(self, tokens: Tensor) -> Tensor:
        """Token ids [B, K] to un-normalised actions [B, C, A], float64."""
        values = self.normalized(tokens).unflatten(-1, (self.chunk, self.scale.size))
        return self.scale.unnormalize(values)

    def encode(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest token ids [B, K]."""
        return self.quantize(self.scale.normalize(actions)).flatten(-2)


def soft_labels(rows: Tensor, classes: int, width: float) -> Tensor:
    """Labels [N] to distributions [N, classes]: a Gaussian of standard deviation `width`, in bins, around each label.

    Bins are ordered, and a plain label calls the neighbour of the right one as wrong as the farthest (HL-Gauss,
    Imani and White 2018).
    """
    distance = torch.arange(classes, device=rows.device) - rows[:, None]
    return torch.softmax(-0.5 * (distance / width) ** 2, dim=-1)
