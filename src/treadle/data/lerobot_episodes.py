"""Where the episodes of a LeRobot dataset lie.

Shapes: T frames of an episode, E episodes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from treadle.data import lerobot
from treadle.data.lerobot_files import numbers, read_lines, read_tables, whole_numbers
from treadle.data.lerobot_info import Info
from treadle.errors import ConfigError
from treadle.reading import path_inside, shown

_LONGEST = 10**7
"""Seconds of a video."""


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode of T frames: its number in the dataset, and the first of its rows."""

    number: int
    start: int
    length: int
    places: dict[str, tuple[Path, int]]
    """By camera that is stored as video: the file, and the position of the episode's first frame in it."""
    success: Any
    scenario: Any


_Found = tuple[int, int, dict[str, tuple[Path, int]], Any, Any]
"""Number, length, places, success, scenario."""


def read_episodes(directory: Path, info: Info, keys: Sequence[str]) -> list[Episode]:
    """The episodes in order of their numbers, which may have gaps where some were deleted. `keys` are the cameras whose
    videos are looked up. Raises ConfigError.
    """
    found = sorted((_joined if info.joined else _apart)(directory, info, keys), key=lambda row: row[0])
    if not found:
        raise ConfigError(f"{directory}: meta/episodes has no episode; there is nothing to learn from")
    starts = np.cumsum([0, *(row[1] for row in found)]).tolist()
    episodes = [Episode(row[0], start, *row[1:]) for row, start in zip(found, starts, strict=False)]
    for one, other in pairwise(episodes):
        if one.number == other.number:
            raise ConfigError(f"{directory}: column 'episode_index' of meta/episodes holds {one.number} twice")
    return episodes


def said_of_episodes(values: Sequence[Any], kind: type, name: str, directory: Path) -> list[Any] | None:
    """What a column of the episodes says that LeRobot does not know; None where it says nothing."""
    if all(value is None for value in values):
        return None
    for value in values:
        if not isinstance(value, kind):
            raise ConfigError(f"{directory}: column {name!r} of meta/episodes holds {value!r}, not {kind.__name__}")
    return list(values)


def _apart(directory: Path, info: Info, keys: Sequence[str]) -> Iterator[_Found]:
    """Before version 3: each episode has a file of its own for each camera."""
    path = directory / lerobot.EPISODE_LINES
    for row, line in read_lines(path, directory):
        number, length = line.get("episode_index"), line.get("length")
        if type(number) is not int or type(length) is not int or number < 0:
            raise ConfigError(
                f"{path}: line {row}: found {shown(line)}; allowed: episode_index and length, whole numbers"
            )
        _check_length(length, path, row)
        places: dict[str, tuple[Path, int]] = {}
        for key in keys:
            name = info.video_path.format(
                video_key=key, episode_chunk=number // info.episodes_per_chunk, episode_index=number
            )
            places[key] = path_inside(directory, name, f"{path}: videos/{key}", ConfigError), 0
        yield number, length, places, line.get("success"), line.get("scenario")


def _joined(directory: Path, info: Info, keys: Sequence[str]) -> Iterator[_Found]:
    """Version 3: several episodes share a file, and a table says where each begins."""
    for path, table in read_tables(directory, "meta/episodes"):
        lengths = whole_numbers(table, "length", path)
        for row in np.flatnonzero(lengths < 1)[:1].tolist():
            _check_length(int(lengths[row]), path, row)
        places: list[dict[str, tuple[Path, int]]] = [{} for _ in range(len(lengths))]
        for key in keys:
            chunks, files = (whole_numbers(table, f"videos/{key}/{x}_index", path) for x in ("chunk", "file"))
            starts = numbers(table, f"videos/{key}/from_timestamp", path)
            for place, chunk, file, start in zip(places, chunks, files, starts, strict=True):
                name = info.video_path.format(video_key=key, chunk_index=int(chunk), file_index=int(file))
                if not 0 <= start <= _LONGEST:
                    raise ConfigError(
                        f"{path}: column 'videos/{key}/from_timestamp' is {start:g}; allowed: 0 to {_LONGEST}"
                    )
                place[key] = path_inside(directory, name, f"{path}: videos/{key}", ConfigError), round(start * info.fps)
        named = {x: table[x].to_pylist() if x in table.column_names else None for x in ("success", "scenario")}
        success, scenario = (values or [None] * len(lengths) for values in named.values())
        numbered = whole_numbers(table, "episode_index", path).tolist()
        yield from zip(numbered, lengths.tolist(), places, success, scenario, strict=True)


def _check_length(length: int, path: Path, row: int) -> None:
    if length < 1:
        raise ConfigError(f"{path}: column 'length' is {length} in row {row}; an episode has a frame at least")
