"""Demonstrations, read from a LeRobot dataset of version 3.0.

Shapes: T frames of an episode, N frames of all episodes, E episodes, H and W pixels, P state, A action dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.data.lerobot_files import Info, numbers, read_info, read_tables, read_tasks, vectors, whole_numbers
from treadle.errors import ConfigError
from treadle.memory import available_memory
from treadle.reading import library, path_inside


@dataclass(slots=True)
class Demonstrations:
    """Episodes one after another, one row a frame."""

    frames: NDArray[np.uint8]
    """[N, cameras, H, W, 3], RGB."""
    state: NDArray[np.float32]
    """[N, P]; P is 0 where the dataset has none."""
    actions: NDArray[np.float32]
    """[N, A]"""
    episode_index: NDArray[np.int64]
    """[N], counts from 0 without gaps, whatever numbers the dataset has."""
    frame_index: NDArray[np.int64]
    """[N], counts from 0 in each episode."""
    instructions: list[str]
    """N instructions."""
    success: NDArray[np.bool_] | None
    """[E], None where the dataset does not say."""
    scenarios: list[str] | None
    """E ids, None where the dataset does not say."""
    cameras: tuple[str, ...]
    fps: int


def action_statistics(actions: NDArray[np.float32], mask: Sequence[bool] | None = None) -> dict[str, list[Any]]:
    """Statistics over actions [N, A], in raw units, that a policy normalises by: an entry a dimension, as in the
    `action` part of OpenVLA's dataset_statistics.json.

    `mask`: A flags, False for dimensions that are not normalised (a gripper in [0, 1]); by default all are. Raises
    ValueError for no actions, numbers that are not finite, and a mask of another length.
    """
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"actions must be [N, A] with N > 0, found shape {actions.shape}")
    for row, dimension in np.argwhere(~np.isfinite(actions))[:1].tolist():
        raise ValueError(f"actions[{row}, {dimension}] is {actions[row, dimension]}; statistics need finite numbers")
    flags = [True] * actions.shape[1] if mask is None else list(mask)
    if len(flags) != actions.shape[1]:
        raise ValueError(f"mask has {len(flags)} flags, actions {actions.shape[1]} dimensions")
    found = lerobot.vector_statistics(actions)
    return {name: found[name] for name in ("q01", "q99", "min", "max", "mean", "std")} | {"mask": flags}


_LATE = 0.5
"""Frames by which a time stamp may be off: with more it belongs to another frame of the video."""
_LONGEST = 10**7
"""Seconds of a video."""
_RATE_TOLERANCE = 0.05
"""Of a video's frame rate. Joined files have an average that is not whole."""


@dataclass(frozen=True, slots=True)
class _Episode:
    """Where an episode of T frames lies: its number in the dataset, and the first of its rows."""

    number: int
    start: int
    length: int
    places: dict[str, tuple[Path, int]]
    """By camera: the video file, and the position of the episode's first frame in it."""
    success: Any
    scenario: Any


def dataset_cameras(directory: Path) -> tuple[str, ...]:
    """Names of a dataset's cameras, in its order. Raises ConfigError as `read_demonstrations` does."""
    return tuple(key.removeprefix(lerobot.CAMERA_PREFIX) for key in read_info(directory).cameras)


def read_demonstrations(directory: Path, cameras: Sequence[str] | None = None) -> Demonstrations:
    """Read a whole dataset into memory; each video file is decoded once, from its start.

    `cameras` are read in that order, by default all that the dataset has. Raises ConfigError where the directory holds
    no LeRobot dataset, one of another version, lacks a file or a column, or holds what cannot be trained on: files that
    contradict each other, cameras of several sizes, numbers that are not finite.
    """
    info = read_info(directory)
    keys = _camera_keys(directory, info, cameras)
    tasks = read_tasks(directory)
    episodes = _read_episodes(directory, info, keys)
    parts = [_read_part(path, table, info, tasks) for path, table in read_tables(directory, "data")]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # Files and rows may stand in any order.
    order = np.lexsort((rows["frame_index"], rows["episode_index"]))
    rows = {name: values[order] for name, values in rows.items()}
    _check_rows(directory, episodes, rows, info)
    lengths = [episode.length for episode in episodes]
    success = _said([episode.success for episode in episodes], bool, "success", directory)
    return Demonstrations(
        frames=_read_frames(directory, info, keys, episodes),
        state=rows["observation.state"] if "observation.state" in rows else np.zeros((sum(lengths), 0), np.float32),
        actions=rows["action"],
        episode_index=np.repeat(np.arange(len(episodes)), lengths),
        frame_index=rows["frame_index"],
        instructions=[tasks[task] for task in rows["task_index"].tolist()],
        success=None if success is None else np.array(success, bool),
        scenarios=_said([episode.scenario for episode in episodes], str, "scenario", directory),
        cameras=tuple(key.removeprefix(lerobot.CAMERA_PREFIX) for key in keys),
        fps=info.fps,
    )


def _camera_keys(directory: Path, info: Info, cameras: Sequence[str] | None) -> list[str]:
    """The features of the cameras that are wanted. Raises ConfigError for an unknown one, and for several sizes."""
    known = {key.removeprefix(lerobot.CAMERA_PREFIX): key for key in info.cameras}
    names = list(known) if cameras is None else list(cameras)
    for name in names:
        if name not in known:
            raise ConfigError(f"{directory}: the dataset has no camera {name!r}; it has {', '.join(known)}")
    keys = [known[name] for name in names]
    if len({info.cameras[key] for key in keys}) != 1:
        sizes = ", ".join(f"{name} {list(info.cameras[key])}" for name, key in zip(names, keys, strict=True))
        raise ConfigError(f"{directory}: Treadle reads videos of one size; found {sizes or 'no camera'}")
    return keys


def _read_part(path: Path, table: Any, info: Info, tasks: dict[int, str]) -> dict[str, NDArray[Any]]:
    """The columns of one data file. Raises ConfigError."""
    part: dict[str, NDArray[Any]] = {
        **{name: whole_numbers(table, name, path) for name in ("episode_index", "frame_index", "task_index")},
        "timestamp": numbers(table, "timestamp", path),
        **{name: vectors(table, name, size, path) for name, size in info.vectors.items()},
    }
    if unknown := sorted(set(part["task_index"].tolist()) - tasks.keys()):
        raise ConfigError(
            f"{path}: column 'task_index' holds {unknown[0]}, and {lerobot.TASKS} has "
            f"{', '.join(map(str, sorted(tasks))) or 'no task'}"
        )
    return part


def _read_episodes(directory: Path, info: Info, keys: Sequence[str]) -> list[_Episode]:
    """The episodes in order of their numbers, which may have gaps where some were deleted."""
    found: list[tuple[int, int, dict[str, tuple[Path, int]], Any, Any]] = []
    for path, table in read_tables(directory, "meta/episodes"):
        lengths = whole_numbers(table, "length", path)
        for row in np.flatnonzero(lengths < 1)[:1].tolist():
            raise ConfigError(
                f"{path}: column 'length' is {lengths[row]} in row {row}; an episode has a frame at least"
            )
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
        found += zip(numbered, lengths.tolist(), places, success, scenario, strict=True)
    found.sort(key=lambda row: row[0])
    if not found:
        raise ConfigError(f"{directory}: meta/episodes has no episode; there is nothing to learn from")
    starts = np.cumsum([0, *(row[1] for row in found)]).tolist()
    episodes = [_Episode(row[0], start, *row[1:]) for row, start in zip(found, starts, strict=False)]
    for one, other in pairwise(episodes):
        if one.number == other.number:
            raise ConfigError(f"{directory}: column 'episode_index' of meta/episodes holds {one.number} twice")
    return episodes


def _check_rows(directory: Path, episodes: Sequence[_Episode], rows: dict[str, NDArray[Any]], info: Info) -> None:
    """Raises ConfigError where data files are not those of the episodes, and for numbers that are not finite."""
    there, counts = np.unique(rows["episode_index"], return_counts=True)
    held, told = dict(zip(there.tolist(), counts.tolist(), strict=True)), {x.number: x.length for x in episodes}
    for number in sorted(held.keys() | told.keys()):
        if held.get(number, 0) != told.get(number, 0):
            raise ConfigError(
                f"{directory}: data files hold {held.get(number, 0)} frames of episode {number}, column 'length' of "
                f"meta/episodes says {told.get(number, 0)}; a file is missing or of another dataset"
            )
    for episode in episodes:
        part = slice(episode.start, episode.start + episode.length)
        if not np.array_equal(rows["frame_index"][part], np.arange(episode.length)):
            raise ConfigError(
                f"{directory}: column 'frame_index' of episode {episode.number} does not count from 0 to "
                f"{episode.length - 1}; frames are missing or doubled"
            )
        off = np.abs(rows["timestamp"][part] * info.fps - np.arange(episode.length))
        for frame in np.flatnonzero(~(off < _LATE))[:1].tolist():
            raise ConfigError(
                f"{directory}: column 'timestamp' is {rows['timestamp'][part][frame]:g} at episode {episode.number}, "
                f"frame {frame}, and {frame / info.fps:g} by fps {info.fps} of {lerobot.INFO}; the frame of the video "
                "that belongs to it is not known"
            )
        for name, size in info.vectors.items():
            for frame, place in np.argwhere(~np.isfinite(rows[name][part]))[:1].tolist():
                raise ConfigError(
                    f"{directory}: column {name!r} holds {rows[name][part][frame, place]} at episode {episode.number}, "
                    f"frame {frame}, dimension {place} of {size}; mend the number, or leave the episode out"
                )


def _said(values: Sequence[Any], kind: type, name: str, directory: Path) -> list[Any] | None:
    """What a column of the episodes says that LeRobot does not know; None where it says nothing."""
    if all(value is None for value in values):
        return None
    for value in values:
        if not isinstance(value, kind):
            raise ConfigError(f"{directory}: column {name!r} of meta/episodes holds {value!r}, not {kind.__name__}")
    return list(values)


def _read_frames(directory: Path, info: Info, keys: Sequence[str], episodes: Sequence[_Episode]) -> NDArray[np.uint8]:
    """Frames [N, cameras, H, W, 3]; the frame at position i of a file is shown at i / fps."""
    count = sum(episode.length for episode in episodes)
    shape = (count, len(keys), *info.cameras[keys[0]], 3)
    if (wanted := math.prod(shape)) > (free := available_memory()):
        raise ConfigError(
            f"{directory}: its frames are {wanted / 1e9:.1f} GB, and this machine has {free / 1e9:.1f} GB of memory "
            "free; use fewer episodes or cameras, or smaller frames"
        )
    frames = np.empty(shape, np.uint8)
    for camera, key in enumerate(keys):
        rows_of_file: dict[Path, dict[int, int]] = {}
        for episode in episodes:
            path, first = episode.places[key]
            rows = {first + i: episode.start + i for i in range(episode.length)}
            rows_of_file.setdefault(path, {}).update(rows)
        for path, rows in rows_of_file.items():
            if not path.is_file():
                raise ConfigError(f"{directory}: {path.relative_to(directory)} is missing; the dataset is incomplete")
            _decode_into(frames[:, camera], path, rows, info.fps)
    return frames


def _decode_into(frames: NDArray[np.uint8], path: Path, rows: dict[int, int], fps: int) -> None:
    """Put the frames of a file into `frames` [N, H, W, 3], where `rows` maps positions in the file to rows."""
    last, position = max(rows), -1
    with library(path, ConfigError, "a video"):
        rate = lerobot.video_rate(path)
        if rate is not None and abs(rate / fps - 1) > _RATE_TOLERANCE:
            raise ConfigError(f"{path} has {rate:g} frames a second, {lerobot.INFO} declares fps {fps}")
        for position, pixels in enumerate(lerobot.decode_video(path)):
            if position in rows:
                if pixels.shape != frames.shape[1:]:
                    raise ConfigError(
                        f"{path}: frames are {list(pixels.shape)}, {lerobot.INFO} declares {list(frames.shape[1:])}"
                    )
                frames[rows[position]] = pixels
            if position == last:
                return
    raise ConfigError(f"{path} holds {position + 1} frames, its episodes need {last + 1}; the file is incomplete")
