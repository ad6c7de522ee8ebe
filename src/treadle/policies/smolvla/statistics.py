"""Statistics that scale proprioception and actions, as lerobot's processors do.

A missing statistic is an error here. lerobot would pass numbers through unchanged, without a word.
Shapes: D numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.policies.smolvla.config import ACTION, STATE, Mode

NEEDED: dict[Mode, tuple[str, ...]] = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""Statistics that each mode takes."""
PLAIN = ""
"""The group that lerobot looks up, whose names have nothing in front."""


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Scales D numbers, in float32."""

    mode: Mode
    first: Tensor
    """[D] mean, or the number that becomes -1."""
    second: Tensor
    """[D] standard deviation, or the number that becomes 1."""
    epsilon: float = 1e-8

    def normalize(self, values: Tensor) -> Tensor:
        """[..., D] in robot units to normalised units."""
        if self.mode == "IDENTITY":
            return values
        first, second = self.first.to(values.device), self.second.to(values.device)
        if self.mode == "MEAN_STD":
            return (values - first) / (second + self.epsilon)
        return 2 * (values - first) / self._span(first, second) - 1

    def unnormalize(self, values: Tensor) -> Tensor:
        """The inverse, without epsilon where lerobot's has none."""
        if self.mode == "IDENTITY":
            return values
        first, second = self.first.to(values.device), self.second.to(values.device)
        if self.mode == "MEAN_STD":
            return values * second + first
        # The order of operations is lerobot's, which differs between modes.
        if self.mode == "MIN_MAX":
            return (values + 1) / 2 * self._span(first, second) + first
        return (values + 1) * self._span(first, second) / 2 + first

    def _span(self, first: Tensor, second: Tensor) -> Tensor:
        span = second - first
        return torch.where(span == 0, self.epsilon, span)


Statistics = Mapping[str, Tensor]
"""Tensors by `[group.]feature.statistic`."""


def list_groups(statistics: Statistics) -> dict[str, set[str]]:
    """The groups of statistics of actions or proprioception, each with its features."""
    groups: dict[str, set[str]] = {}
    for name in statistics:
        key = name.rpartition(".")[0]
        for feature in (ACTION, STATE):
            if key == feature or key.endswith(f".{feature}"):
                groups.setdefault(_group(key.removesuffix(feature)), set()).add(feature)
    return groups


def _group(prefix: str) -> str:
    """The name of a group from what stands in front of its features, such as `so100.buffer.`."""
    return prefix.removesuffix(".").removesuffix("buffer").removesuffix(".")


def select_group(statistics: Statistics, wanted: str | None, source: str) -> dict[str, Tensor]:
    """The statistics of a group, by `feature.statistic`; of the plain one for None. Raises CheckpointError, which lists
    the groups there are.
    """
    groups = list_groups(statistics)
    chosen = PLAIN if wanted is None else wanted
    if chosen not in groups:
        named = ", ".join(sorted(group for group in groups if group != PLAIN)) or "none"
        plain = "plain ones, " if PLAIN in groups else ""
        what = "without a group's name in front" if wanted is None else f"of the group {wanted!r}"
        raise CheckpointError(
            f"{source}: no statistics of actions {what}; there are: {plain}groups {named}. Choose a group by "
            "policy.statistics. lerobot would act without scaling here"
        )
    found: dict[str, Tensor] = {}
    for name, tensor in statistics.items():
        key, _, statistic = name.rpartition(".")
        for feature in (ACTION, STATE):
            if (key == feature or key.endswith(f".{feature}")) and _group(key.removesuffix(feature)) == chosen:
                found[f"{feature}.{statistic}"] = tensor
    return found


def read_normalizer(
    group: Statistics, feature: str, mode: Mode, size: int, epsilon: float, source: str, groups: Mapping[str, set[str]]
) -> Normalizer:
    """The scaling of a feature of `size` numbers. Raises CheckpointError for what is missing, of another length, or no
    finite number.
    """
    tensors: list[Tensor] = []
    for statistic in NEEDED[mode]:
        name = f"{feature}.{statistic}"
        if name not in group:
            there = "; ".join(f"{key or 'plain'}: {', '.join(sorted(names))}" for key, names in sorted(groups.items()))
            raise CheckpointError(
                f"{source}: no statistic {name!r}, which {mode} takes; groups of statistics there are: "
                f"{there or 'none'}. A policy without statistics can be fine-tuned on a data set: "
                "imitation.statistics=dataset with policy.options.without_statistics=true"
            )
        tensor = group[name].float().flatten()
        if tensor.numel() != size:
            raise CheckpointError(f"{source}: {name} has {tensor.numel()} numbers; config.json has {size}")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name}: found {tensor.tolist()}; allowed: finite numbers")
        tensors.append(tensor)
    nothing = torch.zeros(size)
    first, second = tensors or (nothing, nothing)
    return Normalizer(mode, first, second, epsilon)
