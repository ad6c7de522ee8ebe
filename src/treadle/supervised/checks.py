"""What is wrong with demonstrations for a simulator and a policy, said before anything is learned from them.

Shapes: N frames of all episodes, A action dimensions.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treadle.data.demonstrations import Demonstrations, dataset_cameras
from treadle.errors import ConfigError
from treadle.policies.protocol import Policy, Scale, Scaling
from treadle.simulators.protocol import ActionDimension, SimulatorSpec

_log = logging.getLogger(__name__)

NOTICED = 0.05
"""Share of a dimension that may be clipped without a word: statistics by quantiles clip 2 % of their own data."""
REFUSED = 0.5
"""Share from which on the data must be in other units than the statistics."""
_SHOWN = 4
"""Dimensions that are named in one message."""
_GRIPPER_MARGIN = 0.1
"""What a measured gripper may lie outside [0, 1]."""


def choose_cameras(dataset: Path, spec: SimulatorSpec, wanted: Sequence[str]) -> tuple[str, ...]:
    """The cameras of a data set, in the order of the simulator's: those that are wanted, or of the same names, or the
    only one of both. Raises ConfigError, naming both, where that does not say which.
    """
    there = dataset_cameras(dataset)
    if wanted:
        if len(wanted) != len(spec.cameras):
            raise ConfigError(
                f"cameras {list(wanted)}: the simulator {spec.name!r} has {len(spec.cameras)} "
                f"({', '.join(spec.cameras)}); name as many of the data set's, in that order"
            )
        return tuple(wanted)
    if set(spec.cameras) <= set(there):
        return spec.cameras
    if len(there) == len(spec.cameras) == 1:
        return there
    raise ConfigError(
        f"dataset {dataset}: it has the cameras {', '.join(there)}, the simulator {spec.name!r} has "
        f"{', '.join(spec.cameras)}; name the data set's that the policy shall see, in the order of the simulator's, "
        f"as cameras={list(there[: len(spec.cameras)])}, or give the simulator other cameras in simulator.options"
    )


def check_policy(dataset: Path, demonstrations: Demonstrations, policy: Policy) -> None:
    """Raises ConfigError where a checkpoint takes other numbers of actions or proprioception than a data set has."""
    scaling = policy.scaling
    named = f"the checkpoint's statistics {scaling.statistics!r}" if scaling else "the checkpoint"
    found = demonstrations.actions.shape[1]
    if found != policy.action_dim:
        raise ConfigError(
            f"dataset {dataset} has actions of {found} dimensions, {named} {policy.action_dim}; take a data set and a "
            "checkpoint of the same robot"
        )
    state = demonstrations.state.shape[1]
    if scaling and scaling.proprioception and state != len(scaling.proprioception.low):
        raise ConfigError(
            f"dataset {dataset} has observation.state of {state} numbers, {named} proprioception of "
            f"{len(scaling.proprioception.low)}; take a data set with the same numbers, or, where the policy can do "
            "without, policy.options.proprioception_dim=0"
        )


def check_simulator(dataset: Path, demonstrations: Demonstrations, spec: SimulatorSpec, policy: Policy | None) -> None:
    """Raises ConfigError where a data set is of another robot than the simulator's, or has grippers of another range.

    `policy` None is one that is to be made, with the simulator's proprioception.
    """
    check_dimensions(demonstrations.actions, spec.actions, dataset)
    for place, dimension in enumerate(spec.actions):
        low, high = demonstrations.actions[:, place].min(), demonstrations.actions[:, place].max()
        if dimension.kind == "gripper" and (low < -_GRIPPER_MARGIN or high > 1 + _GRIPPER_MARGIN):
            raise ConfigError(
                f"dataset {dataset}: the gripper, action dimension {place} ({dimension.name!r}), goes from {low:g} to "
                f"{high:g}; the simulator {spec.name!r} takes grippers in [0, 1], 1 open; convert the data set (of -1 "
                "open and 1 closed, (1 - x) / 2)"
            )
    if policy is not None and (policy.scaling is None or policy.scaling.proprioception is None):
        return
    found = demonstrations.state.shape[1]
    if (policy is not None or spec.proprioception_dim) and found != spec.proprioception_dim:
        raise ConfigError(
            f"dataset {dataset} has observation.state of {found} numbers, the simulator {spec.name!r} gives "
            f"proprioception of {spec.proprioception_dim}; the policy would see others than it learned from"
        )


def check_dimensions(
    actions: NDArray[np.float32], dimensions: Sequence[ActionDimension], dataset: Path | None = None
) -> None:
    """Raises ConfigError where actions [N, A] of a data set are not a simulator's."""
    if actions.shape[1] != len(dimensions):
        raise ConfigError(
            f"dataset{'' if dataset is None else f' {dataset}'}: its actions have {actions.shape[1]} dimensions, the "
            f"simulator's have {len(dimensions)} ({', '.join(dimension.name for dimension in dimensions)}); take a "
            "data set of this simulator"
        )


def check_scaling(dataset: Path, demonstrations: Demonstrations, policy: Policy, spec: SimulatorSpec) -> None:
    """Warn of dimensions of which the policy's statistics clip more than 5 %.

    Raises ConfigError where actions must be in other units: more than half of a dimension is clipped, or more than 5 %
    of one that is not scaled.
    """
    scaling = policy.scaling
    if scaling is None:
        return
    found = clipped_dimensions(demonstrations, scaling, [dimension.name for dimension in spec.actions])
    refused = any(other_units for _, other_units in found)
    if not found:
        return
    # What must be mended comes first.
    lines = [line for line, _ in sorted(found, key=lambda entry: not entry[1])]
    more = f"; and {len(lines) - _SHOWN} dimensions more" if len(lines) > _SHOWN else ""
    message = (
        f"dataset {dataset} does not fit the checkpoint's statistics {scaling.statistics!r}, which clip it: "
        f"{'; '.join(lines[:_SHOWN])}{more}. Convert the data set to the units of the statistics, or scale by its own: "
        "imitation.statistics=dataset"
    )
    if refused:
        raise ConfigError(message)
    _log.warning("%s", message)


def clipped_dimensions(
    demonstrations: Demonstrations, scaling: Scaling, names: Sequence[str] | None = None
) -> list[tuple[str, bool]]:
    """A line for each dimension of which a policy's statistics clip more than 5 %, and whether the data must be in
    other units.
    """
    found = _clipped("action", demonstrations.actions, scaling.action, names)
    if scaling.proprioception is not None:
        # A robot that starts elsewhere shows numbers that the checkpoint never saw, in the same units.
        state = _clipped("observation.state", demonstrations.state, scaling.proprioception)
        found += [(line, False) for line, _ in state]
    return found


def _clipped(
    column: str, values: NDArray[np.float32], scale: Scale, names: Sequence[str] | None = None
) -> list[tuple[str, bool]]:
    """A line for each dimension of values [N, D] of which too much lies outside its range, and whether the values must
    be in other units.
    """
    # A dimension that is left as it is, a gripper, has the range [0, 1] at least.
    low = np.where(scale.scaled, scale.low, np.minimum(scale.low, 0))
    high = np.where(scale.scaled, scale.high, np.maximum(scale.high, 1))
    margin = 0.01 * (high - low) + 1e-6
    share = ((values < low - margin) | (values > high + margin)).mean(axis=0)
    # A dimension that never moved has a range of nothing, which tells no units.
    other_units = (share > np.where(scale.scaled, REFUSED, NOTICED)) & (high > low)
    lines: list[tuple[str, bool]] = []
    for place in np.flatnonzero(share > NOTICED).tolist():
        name = "" if names is None else f" {names[place]!r}"
        kind = "" if scale.scaled[place] else " (not scaled, as grippers are)"
        line = (
            f"{column} dimension {place}{name}{kind} goes from {values[:, place].min():g} to {values[:, place].max():g}"
            f", {share[place]:.0%} of it outside {low[place]:g} to {high[place]:g}"
        )
        lines.append((line, bool(other_units[place])))
    return lines
