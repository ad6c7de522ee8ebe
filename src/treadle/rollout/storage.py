"""Where a rollout is put together: lanes write their rows at their own time.

Shapes: T decisions, B slots.
"""

from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor

from treadle.policies.protocol import Inputs

_INPUTS = tuple(item.name for item in fields(Inputs))


class RolloutStorage:
    """Tensors [T, B, ...] by name, each made when its first rows arrive, on their device."""

    def __init__(self, decisions: int, slots: int) -> None:
        self._shape = decisions, slots
        self._tensors: dict[str, Tensor] = {}

    def put(self, name: str, t: int, rows: slice | Sequence[int], values: Tensor) -> None:
        """Keep `values` [n, ...] as rows of decision `t`."""
        tensor = self._tensors.get(name)
        if tensor is None:
            tensor = self._tensors[name] = values.new_zeros(*self._shape, *values.shape[1:])
        tensor[t, rows] = values

    def put_inputs(self, t: int, rows: slice, inputs: Inputs) -> None:
        """Keep inputs [n] as rows of decision `t`."""
        for name in _INPUTS:
            values: Tensor | None = getattr(inputs, name)
            if values is not None:
                self.put(name, t, rows, values)

    def hold(self, since: int, rows: slice) -> None:
        """Give decisions from `since` on the inputs and the decision before it, in slots that no longer play."""
        for tensor in self._tensors.values():
            tensor[since:, rows] = tensor[since - 1, rows]

    def get(self, name: str, decisions: int) -> Tensor:
        """[decisions, B, ...] on the CPU."""
        return self._tensors[name][:decisions].cpu()

    def inputs(self, decisions: int) -> list[Inputs]:
        """`decisions` inputs of B rows each."""
        there = {name: self._tensors[name] for name in _INPUTS if name in self._tensors}
        return [Inputs(**{name: tensor[t] for name, tensor in there.items()}) for t in range(decisions)]
