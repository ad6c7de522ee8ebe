"""Where a rollout is put together: lanes write their rows at their own time.

Shapes: T decisions, B slots.
"""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from treadle.policies.protocol import Inputs

_INPUTS = tuple(item.name for item in fields(Inputs))


class RolloutStorage:
    """Tensors [T, B, ...] by name, each made when its first rows arrive, on their device."""

    def __init__(self, decisions: int, slots: int) -> None:
        self._shape = decisions, slots
        self._tensors: dict[str, Tensor] = {}

    def put(self, name: str, t: int, rows: slice | NDArray[np.intp], values: Tensor) -> None:
        """Keep `values` [n, ...] as rows of decision `t`; rows that are never put are zero."""
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = values.new_zeros(*self._shape, *values.shape[1:])
        if isinstance(rows, slice):
            tensor[t, rows.start : rows.stop].copy_(values)
        else:
            tensor[t, rows] = values

    def put_inputs(self, t: int, rows: slice | NDArray[np.intp], inputs: Inputs) -> None:
        """Keep inputs [n] as rows of decision `t`."""
        for name in _INPUTS:
            values: Tensor | None = getattr(inputs, name)
            if values is not None:
                self.put(name, t, rows, values)

    def get(self, name: str, decisions: int) -> Tensor:
        """[decisions, B, ...] on the CPU."""
        return self._tensors[name][:decisions].cpu()

    def inputs(self, decisions: int) -> list[Inputs]:
        """`decisions` inputs of B rows each."""
        there = {name: self._tensors[name] for name in _INPUTS if name in self._tensors}
        return [Inputs(**{name: tensor[t] for name, tensor in there.items()}) for t in range(decisions)]
