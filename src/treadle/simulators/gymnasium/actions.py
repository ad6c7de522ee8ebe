"""From a policy's actions to an environment's.

Shapes: A action dimensions.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from treadle.errors import ConfigError
from treadle.simulators.protocol import ActionDimension, ActionKind


class ActionMap:
    """Moves actions from `action_range`, where it is given, onto the bounds of the action space, and clips them.

    Raises ConfigError for a space that is no vector of numbers, and for a range that cannot be mapped.
    """

    def __init__(self, space: spaces.Space[Any], action_range: Sequence[float] | None) -> None:
        key = "simulator.options.action_range"
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigError(f"simulator.name: the action space is {space}; it must be a Box with one dimension")
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._dtype = space.dtype
        self._range: tuple[float, float] | None = None
        if action_range is None:
            return
        if len(action_range) != 2 or not -np.inf < action_range[0] < action_range[1] < np.inf:
            raise ConfigError(f"{key}: {list(action_range)}; give the lowest and the highest action of the policy")
        if not (np.isfinite(self.low) & np.isfinite(self.high)).all():
            raise ConfigError(f"{key}: the action space {space} has no bounds to map onto; leave the range out")
        self._range = (float(action_range[0]), float(action_range[1]))

    def meaning(self, kinds: ActionKind | Sequence[ActionKind]) -> tuple[ActionDimension, ...]:
        """The dimensions, where option `actions` says of what kind they are: all alike, or each. Raises ConfigError."""
        count = len(self.low)
        each: list[ActionKind] = [kinds] * count if isinstance(kinds, str) else list(kinds)
        if len(each) != count or any(kind not in get_args(ActionKind) for kind in each):
            allowed = ", ".join(get_args(ActionKind))
            raise ConfigError(
                f"simulator.options.actions: {kinds!r}; give one of {allowed}, or a list of {count} of them, one for "
                "each dimension of the action space"
            )
        return tuple(ActionDimension(f"a{i}", kind) for i, kind in enumerate(each))

    def __call__(self, action: NDArray[np.float32]) -> NDArray[Any]:
        """The action [A] that the environment plays."""
        played = action.astype(np.float64)
        if self._range is not None:
            lowest, highest = self._range
            played = self.low + (played - lowest) / (highest - lowest) * (self.high - self.low)
        return np.clip(played, self.low, self.high).astype(self._dtype)
