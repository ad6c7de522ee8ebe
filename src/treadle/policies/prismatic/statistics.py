"""Statistics of a data set, that ship with the weights: how actions and proprioception are scaled to [-1, 1]."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.policies.protocol import Scale

Normalization = Literal["quantiles", "bounds"]
"""`quantiles`: q01 and q99 go to -1 and 1 (LIBERO, Bridge, tabletop); `bounds`: min and max (ALOHA, RoboTwin)."""

_EPSILON = 1e-8
_ENDS: dict[Normalization, tuple[str, str]] = {"quantiles": ("q01", "q99"), "bounds": ("min", "max")}


@dataclass(frozen=True, slots=True)
class Range:
    """The interval of each dimension that is scaled to [-1, 1]; dimensions outside `mask` are left as they are."""

    low: Tensor
    """[D] float64."""
    high: Tensor
    """[D] float64."""
    mask: Tensor
    """[D] bool."""

    @property
    def size(self) -> int:
        """D."""
        return self.low.numel()

    def normalize(self, values: Tensor) -> Tensor:
        """[..., D] in robot units to float64 [..., D], nominally in [-1, 1]; not clipped."""
        low, high, mask = self._on(values)
        x = values.to(torch.float64)
        return torch.where(mask, 2 * (x - low) / (high - low + _EPSILON) - 1, x)

    def unnormalize(self, values: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        low, high, mask = self._on(values)
        x = values.to(torch.float64)
        return torch.where(mask, 0.5 * (x + 1) * (high - low + _EPSILON) + low, x)

    def arrays(self) -> Scale:
        """The same, for comparison with data."""
        return Scale(self.low.numpy(), self.high.numpy(), self.mask.numpy())

    def _on(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.low.to(values.device), self.high.to(values.device), self.mask.to(values.device)


def select_key(norm_stats: dict[str, Any], key: str | None, source: str) -> str:
    """The data set whose statistics apply: `<key>_no_noops` if there is one, else `key`; the only one for None.

    Raises CheckpointError, naming `source` and the keys there are.
    """
    available = ", ".join(sorted(norm_stats)) or "none"
    if key is None:
        if len(norm_stats) == 1:
            return next(iter(norm_stats))
        raise CheckpointError(f"{source}: statistics of several data sets; choose one of: {available}")
    for candidate in (f"{key}_no_noops", key):
        if candidate in norm_stats:
            return candidate
    raise CheckpointError(f"{source}: no statistics {key!r}; there are: {available}")


def read_range(entry: dict[str, Any], part: str, normalization: Normalization, source: str) -> Range:
    """The range of `part` ("action" or "proprio") of one data set's statistics.

    Raises CheckpointError where it is missing or its lists differ in length.
    """
    if part not in entry:
        raise CheckpointError(f"{source}: no {part!r} statistics; there are: {', '.join(sorted(entry))}")
    numbers = entry[part]
    low_name, high_name = _ENDS[normalization]
    for name in (low_name, high_name):
        if name not in numbers:
            raise CheckpointError(f"{source}: {part} statistics lack {name!r}; there are: {', '.join(sorted(numbers))}")
    low, high = numbers[low_name], numbers[high_name]
    mask = numbers.get("mask", [True] * len(low))
    if not len(low) == len(high) == len(mask):
        raise CheckpointError(f"{source}: {part} has {len(low)} {low_name}, {len(high)} {high_name}, {len(mask)} mask")
    return Range(
        torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), torch.tensor(mask).bool()
    )
