"""What every simulator refuses, in the same words. Imports nothing beside errors."""

from collections.abc import Sequence
from typing import TypeVar

from treadle.errors import ConfigError, SimulatorError, did_you_mean

T = TypeVar("T")


def check_option(option: str, found: str | Sequence[str], allowed: Sequence[str]) -> None:
    """Raises ConfigError for a value of an option that is not allowed; of a list, each value, and one at least."""
    given = [found] if isinstance(found, str) else [*found] or ["none"]
    wrong = [value for value in given if value not in allowed]
    if wrong:
        raise ConfigError(f"simulator.options.{option}: found {wrong[0]!r}; choose from {', '.join(allowed)}")


def check_suite(simulator: str, suite: str, split: str, suites: Sequence[str]) -> None:
    """Raises ConfigError for a suite or a split that a simulator does not have."""
    if suite not in suites:
        near = did_you_mean(suite, suites)
        raise ConfigError(f"{simulator} has no suite {suite!r}{near}; choose from {', '.join(suites)}")
    if split not in ("train", "evaluation"):
        raise ConfigError(f"{simulator} has no split {split!r}; choose 'train' or 'evaluation'")


def entry_of(simulator: str, entries: Sequence[T | None], slot: int) -> T:
    """What a slot plays. Raises SimulatorError for a slot that is used before it has an episode."""
    entry = entries[slot]
    if entry is None:
        raise SimulatorError(f"{simulator}: slot {slot} was never reset; reset it before stepping or observing")
    return entry
