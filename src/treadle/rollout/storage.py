"""Where a rollout is put together: lanes write their rows at their own time.

Shapes: T decisions, B slots, n some of them.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.batch import TensorBatch


class RolloutStorage:
    """Tensors [T, B, ...] by name. Each is made when its first rows arrive, on the device of those."""

    def __init__(self, decisions: int, slots: int) -> None:
        self._shape = decisions, slots
        self._tensors: dict[str, Tensor] = {}
        self._batches: dict[str, TensorBatch] = {}
        """The last part of each batch that was put; it knows the class."""

    def put(self, name: str, t: int, rows: slice | NDArray[np.intp], values: Tensor) -> None:
        """Keep `values` [n, ...] as rows of decision `t`; other rows stay zero."""
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = values.new_zeros(*self._shape, *values.shape[1:])
        if isinstance(rows, slice):
            tensor[t, rows.start : rows.stop].copy_(values)
        else:
            tensor[t, rows] = values

    def put_batch(self, name: str, t: int, rows: slice | NDArray[np.intp], batch: TensorBatch) -> None:
        """Keep a batch [n] as rows of decision `t`."""
        self._batches[name] = batch
        for part, values in batch.tensors().items():
            self.put(f"{name}.{part}", t, rows, values)

    def get(self, name: str, decisions: int) -> Tensor:
        """[decisions, B, ...] on the CPU."""
        return self._tensors[name][:decisions].cpu()

    def batch(self, name: str, decisions: int) -> TensorBatch:
        """The batch of this name, [decisions, B, ...], on its device."""
        batch = self._batches[name]
        return batch.of({part: self._tensors[f"{name}.{part}"][:decisions] for part in batch.tensors()})

    def has(self, name: str) -> bool:
        """Whether something of this name was put."""
        return name in self._batches or name in self._tensors
