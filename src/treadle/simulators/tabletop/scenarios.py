"""The enumeration of suites and scenarios."""

from collections.abc import Sequence
from typing import overload

from treadle.data.scenario import Scenario, Split
from treadle.errors import ConfigError
from treadle.simulators.tabletop.layout import SETTINGS, layout

NAME = "tabletop"
TASK = "put_on_plate"
LENGTH = 1_000_000
"""Scenarios of every suite and split."""

CONCRETE = ("train", *(f"{axis}/{setting}" for axis, settings in SETTINGS.items() for setting in settings))
"""Suites with scenarios of their own; an axis is the union of its settings."""


class Scenarios(Sequence[Scenario]):
    """A lazy enumeration; an axis takes its settings in turn."""

    def __init__(self, suite: str, split: Split) -> None:
        if suite in CONCRETE:
            self._members: tuple[str, ...] = (suite,)
        elif suite in SETTINGS:
            self._members = tuple(f"{suite}/{setting}" for setting in SETTINGS[suite])
        else:
            raise ConfigError(f"tabletop has no suite {suite!r}; choose one of {', '.join((*CONCRETE, *SETTINGS))}")
        if split not in ("train", "evaluation"):
            raise ConfigError(f"tabletop has no split {split!r}; choose 'train' or 'evaluation'")
        self._split: Split = split

    def __len__(self) -> int:
        return LENGTH

    @overload
    def __getitem__(self, index: int) -> Scenario: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scenario]: ...
    def __getitem__(self, index: int | slice) -> Scenario | list[Scenario]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(LENGTH))]
        position = index + LENGTH if index < 0 else index
        if not 0 <= position < LENGTH:
            raise IndexError(index)
        position, member = divmod(position, len(self._members))
        suite = self._members[member]
        return Scenario(NAME, suite, TASK, self._split, position, layout(suite, self._split, position).instruction)
