"""The stochastic steps of a chain as one tensor, which is all that must be kept of a decision to ask about it again.

Shapes: B samples, K steps, J stochastic steps that follow each other (one, or all K), H predicted actions, D padded
dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transitions:
    """J steps of the chain of each sample."""

    states: Tensor
    """[B, J + 1, H, D] float32: before the first of the steps, and after each."""
    first: Tensor
    """[B] int64: the number of the first step."""

    @classmethod
    def of(cls, chain: Tensor, first: Tensor, count: int) -> "Transitions":
        """`count` steps of a chain [B, K + 1, H, D] from the steps `first` [B] on."""
        rows = first[:, None] + torch.arange(count + 1, device=chain.device)
        return cls(chain[torch.arange(len(chain), device=chain.device)[:, None], rows], first)

    @staticmethod
    def numbers(count: int, rows: int, columns: int) -> int:
        """How many `pack` makes of J = `count` steps of H x D states."""
        return 1 + (count + 1) * rows * columns

    def pack(self) -> Tensor:
        """[B, 1 + (J + 1) H D] float32; a step's number is exact in it."""
        return torch.cat([self.first[:, None].float(), self.states.flatten(1).float()], 1)

    @classmethod
    def unpack(cls, packed: Tensor, rows: int, columns: int) -> "Transitions":
        """The inverse of `pack`, for states of `rows` H and `columns` D."""
        return cls(packed[:, 1:].unflatten(1, (-1, rows, columns)), packed[:, 0].long())
