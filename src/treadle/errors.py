"""Errors that a user can cause and mend. The command line prints them as one line and exits with code 2.

A message names the key or file, what was found, what is allowed, and what to do.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class TreadleError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(TreadleError):
    """A recipe, key or value that cannot be used."""


class SimulatorError(TreadleError):
    """A simulator that cannot be built, reset or stepped; names the simulator, slot and scenario."""


class CheckpointError(TreadleError):
    """A checkpoint directory that is incomplete, corrupt or does not fit; names the file."""


class OutputError(TreadleError):
    """An output folder that cannot be written, is taken, or has run out of space; names the path."""


class RequestError(TreadleError):
    """A message to a served policy that cannot be answered; names the key."""


class PlacementError(TreadleError):
    """Roles and devices that do not fit together."""


class RankError(TreadleError):
    """Ranks whose parts of a batch do not fit together, or one that others wait for in vain; names the ranks."""


class MemberLostError(TreadleError):
    """Processes of a run that have died or hang.

    Args:
        brief: which, and while doing what.
        members: their handles.
        last_words: what one of them wrote last.
    """

    def __init__(self, brief: str, members: Sequence[Any], last_words: str = "") -> None:
        super().__init__(brief + last_words)
        self.brief = brief
        self.members = list(members)
        self.last_words = last_words


class MemberFaultError(Exception):
    """A bug in another process of the run: its own trace is in the message."""


class VersionError(TreadleError):
    """Decisions of other weights than those that the trainer has; names both versions."""


class ExhaustedError(TreadleError):
    """Too little memory; names the settings to change."""


class Terminated(KeyboardInterrupt):
    """The system asked to end, by SIGTERM."""


class DivergenceError(TreadleError):
    """A loss or gradient that is not finite; names the tensor. The last checkpoint is good."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A phrase that suggests the nearest known words, or nothing where none is near."""
    return _suggest(difflib.get_close_matches(word, list(known), n=2, cutoff=0.6))


def did_you_mean_folder(path: Path) -> str:
    """A phrase that suggests the folders beside `path` whose names are nearest to its own, or nothing; nothing
    where `path` is there.
    """
    try:
        if path.exists():
            return ""
        beside = [other.name for other in path.parent.iterdir() if other.is_dir()]
    except OSError:
        return ""
    return _suggest(str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, n=2, cutoff=0.6))


def _suggest(near: Iterable[str]) -> str:
    said = " or ".join(map(repr, near))
    return f", did you mean {said}?" if said else ""
