"""Shards: a rank holds some rows of a tensor, and the other ranks hold the rest, as FSDP2 divides parameters.

A sharded parameter is a DTensor, divided along its first dimension. What updates keep for each parameter (masters,
moments, averages) is a plain tensor of the same rows; in a state it becomes a `Shard`, which knows the whole.
"""

import sys
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch.distributed as dist
from torch import Tensor

from treadle.errors import CheckpointError


def can_shard() -> bool:
    """Whether this torch has what FSDP2 is used with; from 2.13 on."""
    return hasattr(dist, "all_gather_single")


class Rows(Protocol):
    """A whole tensor that gives any of its rows."""

    shape: tuple[int, ...]

    def take(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop)."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """A rank's rows of a tensor."""

    rows: Tensor
    """[n, ...], on the rank's device."""
    start: int
    """The place of the first of them in the whole tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""

    def take(self, start: int, stop: int) -> Tensor:
        """See `Rows`. Raises CheckpointError for rows of another rank."""
        first, last = start - self.start, stop - self.start
        if start < stop and not 0 <= first <= last <= len(self.rows):
            raise CheckpointError(
                f"rows {start} to {stop} of a tensor {list(self.shape)}: this rank's state has {self.start} to "
                f"{self.start + len(self.rows)}; go on from a checkpoint, which holds the rows of all ranks"
            )
        return self.rows[max(first, 0) : max(last, 0)]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a shard's parameter or gradient, and not whole."""
    # Importing DTensor takes half a second, and before that there is none.
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def own_rows(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank holds, in the same memory: all of them if it is not sharded."""
    return cast("Any", tensor.detach()).to_local() if is_sharded(tensor) else tensor.detach()


def first_row(tensor: Tensor) -> int:
    """The place of this rank's first row."""
    if not is_sharded(tensor):
        return 0
    mesh = cast("Any", tensor).device_mesh
    return min(len(tensor), mesh.get_local_rank() * -(-len(tensor) // mesh.size()))


def as_state(own: Tensor, parameter: Tensor) -> Tensor | Shard:
    """What a state holds of a tensor with the same rows as a parameter."""
    return Shard(own, first_row(parameter), tuple(parameter.shape)) if is_sharded(parameter) else own


def from_state(saved: Tensor | Rows, parameter: Tensor) -> Tensor:
    """The rows of a saved tensor that a parameter has here, whatever ranks saved it.

    Raises:
        CheckpointError: The saved tensor has another shape.
    """
    if tuple(saved.shape) != tuple(parameter.shape):
        raise CheckpointError(
            f"the state of a parameter {list(parameter.shape)} has shape {list(saved.shape)}: it is of another policy, "
            "or of other settings of what is trained; begin anew under another name=..."
        )
    start = first_row(parameter)
    stop = start + len(own_rows(parameter)) if parameter.dim() else 0
    if isinstance(saved, Tensor):
        # A copy, so that the whole does not stay in memory for it.
        return saved[start:stop].clone() if is_sharded(parameter) else saved
    return saved.take(start, stop)
