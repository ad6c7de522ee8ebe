"""What a data set has that a person should know before it is learned from: findings by name, file, episode and frame.

Shapes: N frames of all episodes, T of one, D numbers.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.data.demonstrations import Demonstrations, Scan
from treadle.errors import ConfigError
from treadle.reading import read_json, shown

_LONGER = 5.0
"""Times the median from which on the length of an episode is odd."""
_STILL = 1e-3
"""Share of a dimension's range that is no motion."""
_IDLE_SECONDS = 1.0
_OUTLIER = 10.0
"""Widths of the range from q01 to q99 by which a number must lie outside of it to be odd."""
_ROUNDING = 1e-6
"""The least width that counts; what moves less stands still but for rounding."""
_DISAGREES = 1e-3
"""Share of a range by which numbers may lie outside of what the data set declares."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    rule: str
    """Its name."""
    refused: bool
    """Nobody can learn from the data set as it is."""
    said: str
    file: str | None = None
    episode: int | None = None
    frame: int | None = None

    def report(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def find_problems(scan: Scan) -> Iterator[Finding]:
    """What keeps a data set from being learned: contradicting files, gaps, numbers that are not finite."""
    for problem in scan.problems():
        file = None
        if problem.frame is not None:
            start = next(episode.start for episode in scan.episodes if episode.number == problem.episode)
            file = _relative(scan.files[int(scan.rows["file"][start + problem.frame])], scan.directory)
        yield Finding(problem.kind, True, problem.said, file, problem.episode, problem.frame)


def find_unreadable(scan: Scan, demonstrations: Demonstrations) -> Iterator[Finding]:
    """Frames that cannot be decoded, of the first and last frame of each episode."""
    for episode in scan.episodes:
        for frame in sorted({0, episode.length - 1}):
            row = episode.start + frame
            try:
                demonstrations.frames[row : row + 1]
            except ConfigError as error:
                yield Finding("frames", True, str(error), None, episode.number, frame)


def find_odd_lengths(scan: Scan, chunk: int | None = None) -> Iterator[Finding]:
    """Episodes that are much longer or shorter than the others, or shorter than a policy's chunk."""
    lengths = np.array([episode.length for episode in scan.episodes])
    middle = float(np.median(lengths))
    for episode in scan.episodes:
        if chunk is not None and episode.length < chunk:
            said = f"{episode.length} frames, fewer than the {chunk} actions that the policy predicts together"
        elif not 1 / _LONGER <= episode.length / middle <= _LONGER:
            said = f"{episode.length} frames, where the median is {middle:g}"
        else:
            continue
        yield Finding("length", False, said, None, episode.number)


def find_idle(scan: Scan) -> Iterator[Finding]:
    """Stretches of a second or more in which neither proprioception nor actions change, or actions are 0."""
    info, rows = scan.info, scan.rows
    actions = rows[info.action]
    state = None if info.state is None else rows[info.state]
    least = max(2, round(_IDLE_SECONDS * info.fps))
    quiet: NDArray[np.bool_] = np.asarray((np.abs(actions) <= 1e-8).all(axis=1), np.bool_)
    if state is not None:
        quiet |= _unchanged(actions) & _unchanged(state)
    for episode in scan.episodes:
        part = quiet[episode.start : episode.start + episode.length].copy()
        part[0] = False
        for first, stop in _stretches(part):
            if stop - first >= least:
                said = f"nothing moves for {stop - first} frames ({(stop - first) / info.fps:.1f} s)"
                yield Finding("idle", False, said, None, episode.number, first)


def find_odd_numbers(scan: Scan) -> Iterator[Finding]:
    """Dimensions that never change, single numbers far outside of the others, and numbers outside of the range that the
    data set's own statistics declare.
    """
    for column in scan.info.vectors:
        values = scan.rows[column].astype(np.float64)
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        width = high - low
        for place in np.flatnonzero(values.min(axis=0) == values.max(axis=0)).tolist():
            yield Finding("constant", False, f"{column!r} dimension {place} is always {values[0, place]:g}")
        counted = np.where(width > 0, np.maximum(width, _ROUNDING), np.inf)
        far = np.maximum(low - values, values - high) > _OUTLIER * counted
        for row, place in np.argwhere(far).tolist():
            most = f"98 % of it is {low[place]:g} to {high[place]:g}"
            said = f"{column!r} dimension {place} is {values[row, place]:g}; {most}"
            yield _at(scan, "outlier", said, row)
        yield from _against_declared(scan, column, values)


def _against_declared(scan: Scan, column: str, values: NDArray[np.float64]) -> Iterator[Finding]:
    path = scan.directory / lerobot.STATS
    if not path.is_file():
        return
    try:
        declared = _read_range(path, column, values.shape[1])
    except ConfigError as error:
        yield Finding("statistics", True, str(error), lerobot.STATS)
        return
    if declared is None:
        yield Finding("statistics", False, f"no min and max of {column!r}; others may scale by them", lerobot.STATS)
        return
    low, high = declared
    margin = _DISAGREES * (high - low) + 1e-6
    outside = (values < low - margin) | (values > high + margin)
    for place in np.flatnonzero(outside.any(axis=0)).tolist():
        row = int(np.flatnonzero(outside[:, place])[0])
        said = (
            f"{column!r} dimension {place} is {values[row, place]:g}, and {outside[:, place].mean():.1%} of it lies "
            f"outside of {low[place]:g} to {high[place]:g}, which {lerobot.STATS} declares"
        )
        yield _at(scan, "range", said, row)


def _read_range(path: Path, column: str, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Declared min and max [D] of a column; None where they are not there. Raises ConfigError."""
    content = read_json(path, ConfigError)
    entry = content.get(column) if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not {"min", "max"} <= entry.keys():
        return None
    found: list[NDArray[np.float64]] = []
    for name in ("min", "max"):
        numbers = entry[name]
        plain = isinstance(numbers, list) and all(isinstance(x, int | float) for x in numbers)
        if not plain or len(numbers) != size:
            raise ConfigError(f"{path}: {column}: {name}: found {shown(numbers)}; allowed: a list of {size} numbers")
        found.append(np.array(numbers, np.float64))
    return found[0], found[1]


def _at(scan: Scan, rule: str, said: str, row: int) -> Finding:
    """A finding at a row of all."""
    file = _relative(scan.files[int(scan.rows["file"][row])], scan.directory)
    return Finding(rule, False, said, file, int(scan.rows["episode_index"][row]), int(scan.rows["frame_index"][row]))


def _unchanged(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[N] whether a row is that before it, but for a small share of each dimension's range; the first is not."""
    margin = _STILL * (values.max(axis=0) - values.min(axis=0))
    same = (np.abs(np.diff(values, axis=0)) <= margin).all(axis=1)
    return np.concatenate([[False], same])


def _stretches(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and end of each run of True in flags [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()
