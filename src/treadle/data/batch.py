"""Named tensors of the same samples.

Shapes: N samples; every tensor is [N, ...].
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(slots=True)
class TensorBatch:
    """Base of dataclasses whose fields are tensors with a leading dimension of samples, or None.

    A policy's inputs are a subclass of its own. Everybody else moves them about by these methods alone.
    """

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def take(self, rows: Tensor | slice) -> Self:
        """The given samples, in the given order."""
        return self.of({name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        """The same samples on another device."""
        return self.of({name: tensor.to(device) for name, tensor in self.tensors().items()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """The samples of all parts, which are of one class and have the same tensors.

        Raises ValueError where a tensor is there in some parts only.
        """
        columns = [part.tensors() for part in parts]
        for column in columns[1:]:
            if column.keys() != columns[0].keys():
                raise ValueError(f"batches of different tensors: {sorted(columns[0])} and {sorted(column)}")
        return parts[0].of({name: torch.cat([column[name] for column in columns]) for name in columns[0]})

    def of(self, tensors: dict[str, Tensor]) -> Self:
        """A batch of this class of other tensors, by name; None for those that are left out."""
        return type(self)(**{item.name: tensors.get(item.name) for item in fields(self)})
