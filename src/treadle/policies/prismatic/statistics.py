"""Statistics of a data set, that ship with the weights: how actions and proprioception are scaled to [-1, 1]."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.policies.protocol import Scale
from treadle.reading import shown

Normalization = Literal["quantiles", "bounds"]
"""`quantiles`: q01 and q99 go to -1 and 1 (LIBERO, Bridge, tabletop); `bounds`: min and max (ALOHA, RoboTwin)."""

ROBOTWIN = "robotwin2_"
"""What some put in front of the names of RoboTwin's data sets."""
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


def select_key(norm_stats: object, key: str | None, source: str) -> str:
    """The data set whose statistics apply: `key`, else its twin `<key>_no_noops`, else its twin with or without
    `robotwin2_` in front; the only one for None.

    Raises CheckpointError, naming `source` and the keys there are.
    """
    if not isinstance(norm_stats, dict):
        raise CheckpointError(f"{source}: the statistics are {shown(norm_stats)}; allowed: an object of data sets")
    if not norm_stats:
        raise CheckpointError(f"{source}: no statistics of any data set; those of the training data must be there")
    available = ", ".join(sorted(norm_stats))
    if key is None:
        if len(norm_stats) == 1:
            return next(iter(norm_stats))
        raise CheckpointError(f"{source}: statistics of several data sets; choose one of: {available}")
    for candidate in (key, *twins(key)):
        if candidate in norm_stats:
            return candidate
    raise CheckpointError(f"{source}: no statistics {key!r}; there are: {available}")


def twins(key: str) -> tuple[str, ...]:
    """Other names under which a data set's statistics may be found where its own is missing.

    The official evaluation of LIBERO adds an ending then. For RoboTwin, SimpleVLA-RL says the benchmark before the
    task, and takes it off again; RLinf does not say it.
    """
    return (f"{key}_no_noops", key.removeprefix(ROBOTWIN), f"{ROBOTWIN}{key}")


def count_actions(norm_stats: dict[str, Any], key: str, source: str) -> int:
    """A, the dimensions of a data set's actions. Raises CheckpointError where there are no statistics of actions."""
    numbers = _part(norm_stats, key, "action", source)
    for name in ("q01", "q99", "min", "max"):
        if name in numbers:
            return len(_finite(numbers, name, f"{source}: {key}: action"))
    raise CheckpointError(
        f"{source}: {key}: action lacks q01 and q99; there are: {', '.join(sorted(numbers)) or 'none'}"
    )


def read_range(
    norm_stats: dict[str, Any], key: str, part: str, normalization: Normalization, source: str, size: int | None = None
) -> Range:
    """The range of `part` ("action" or "proprio") of the data set `key`, which must have `size` dimensions.

    Without a mask, or with null for it, all dimensions are scaled, as in the official code. Raises CheckpointError,
    naming `source`, data set, list and index, for what is missing, is no finite number, or is the wrong way round.
    """
    numbers, where = _part(norm_stats, key, part, source), f"{source}: {key}: {part}"
    names = _ENDS[normalization]
    for name in names:
        if name not in numbers:
            other = " (normalization=bounds takes min and max)" if "max" in numbers else ""
            raise CheckpointError(f"{where} lacks {name!r}{other}; there are: {', '.join(sorted(numbers))}")
    low, high = (_finite(numbers, name, where) for name in names)
    mask = _flags(numbers.get("mask"), len(low), where)
    if not len(low) == len(high) == len(mask):
        raise CheckpointError(f"{where} has {len(low)} {names[0]}, {len(high)} {names[1]}, {len(mask)} mask")
    if size is not None and len(low) != size:
        raise CheckpointError(f"{where} has {len(low)} {names[0]}; the policy takes {size} numbers")
    for index, (below, above, scaled) in enumerate(zip(low, high, mask, strict=True)):
        if scaled and below > above:
            raise CheckpointError(
                f"{where}: {names[0]}[{index}] is {below}, above {names[1]}[{index}] {above}; they must be in order"
            )
    return Range(torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64), torch.tensor(mask))


def _part(norm_stats: dict[str, Any], key: str, part: str, source: str) -> dict[str, Any]:
    entry = norm_stats[key]
    if not isinstance(entry, dict):
        raise CheckpointError(f"{source}: {key}: found {shown(entry)}; allowed: an object with action statistics")
    if part not in entry:
        raise CheckpointError(
            f"{source}: {key}: no {part!r} statistics; there are: {', '.join(sorted(entry)) or 'none'}"
        )
    if not isinstance(entry[part], dict):
        raise CheckpointError(f"{source}: {key}: {part}: found {shown(entry[part])}; allowed: an object of lists")
    return entry[part]


def _finite(numbers: dict[str, Any], name: str, where: str) -> list[float]:
    found = numbers[name]
    if not isinstance(found, list) or not found:
        raise CheckpointError(f"{where}: {name}: found {shown(found)}; allowed: a list of numbers, one per dimension")
    for index, number in enumerate(found):
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
            raise CheckpointError(f"{where}: {name}[{index}]: found {shown(number)}; allowed: a finite number")
    return [float(number) for number in found]


def _flags(found: object, size: int, where: str) -> list[bool]:
    if found is None:
        return [True] * size
    if not isinstance(found, list):
        raise CheckpointError(f"{where}: mask: found {shown(found)}; allowed: null, or a list of true and false")
    for index, flag in enumerate(found):
        if flag not in (False, True):
            raise CheckpointError(f"{where}: mask[{index}]: found {shown(flag)}; allowed: true or false")
    return [bool(flag) for flag in found]
