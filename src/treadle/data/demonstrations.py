"""Demonstrations, read from a LeRobot dataset.

Shapes: T frames of an episode, N frames of all episodes, E episodes, H and W pixels, P state, A action dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.data.lerobot_episodes import Episode, read_episodes, said_of_episodes
from treadle.data.lerobot_files import numbers, read_tables, read_tasks, vectors, whole_numbers
from treadle.data.lerobot_info import Columns, Info, read_info
from treadle.data.stored_frames import CameraFrames, StoredFrames
from treadle.errors import ConfigError
from treadle.memory import available_memory


@dataclass(slots=True)
class Demonstrations:
    """Episodes one after another, one row a frame."""

    frames: NDArray[np.uint8] | StoredFrames
    """[N, cameras, H, W, 3], RGB; in memory, or in files until rows of them are asked for."""
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

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each camera."""
        if isinstance(self.frames, StoredFrames):
            return self.frames.sizes
        return [(self.frames.shape[2], self.frames.shape[3])] * self.frames.shape[1]

    def head(self, count: int) -> "Demonstrations":
        """The first `count` frames, which must be those of whole episodes."""
        if count == len(self.actions):
            return self
        episodes = int(self.episode_index[count])
        return replace(
            self,
            frames=self.frames.head(count) if isinstance(self.frames, StoredFrames) else self.frames[:count],
            state=self.state[:count],
            actions=self.actions[:count],
            episode_index=self.episode_index[:count],
            frame_index=self.frame_index[:count],
            instructions=self.instructions[:count],
            success=None if self.success is None else self.success[:episodes],
            scenarios=None if self.scenarios is None else self.scenarios[:episodes],
        )


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
_INDEX = ("episode_index", "frame_index", "task_index", "timestamp")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a dataset's numbers, and where."""

    kind: str
    """`file`, `index`, `time` or `finite`."""
    episode: int
    frame: int | None
    said: str
    """What was found, and what to do."""


def dataset_cameras(directory: Path) -> tuple[str, ...]:
    """Names of a dataset's cameras, in its order. Raises ConfigError as `read_demonstrations` does."""
    return tuple(key.removeprefix(lerobot.CAMERA_PREFIX) for key in read_info(directory).cameras)


def read_demonstrations(
    directory: Path, cameras: Sequence[str] | None = None, columns: Columns | None = None
) -> Demonstrations:
    """What `open_demonstrations` finds, with all frames in memory. Raises ConfigError where they do not fit."""
    found = open_demonstrations(directory, cameras, columns)
    if len(set(found.sizes)) > 1:
        sizes = ", ".join(f"{name} {list(size)}" for name, size in zip(found.cameras, found.sizes, strict=True))
        raise ConfigError(f"{directory}: cameras of several sizes, {sizes}; choose some of one size")
    if (wanted := found.frames.nbytes) > (free := available_memory()):
        raise ConfigError(
            f"{directory}: its frames are {wanted / 1e9:.1f} GB, and this machine has {free / 1e9:.1f} GB of memory "
            "free; use fewer episodes or cameras, or smaller frames"
        )
    return replace(found, frames=np.asarray(found.frames[:]))


def open_demonstrations(
    directory: Path, cameras: Sequence[str] | None = None, columns: Columns | None = None
) -> Demonstrations:
    """Read the numbers of a dataset into memory; frames stay in their files.

    `cameras` are read in that order, by default all that the dataset has. Raises ConfigError where the directory holds
    no LeRobot dataset, one of another version, lacks a file or a column, or holds what cannot be trained on: files that
    contradict each other, numbers that are not finite.
    """
    found = scan_demonstrations(directory, cameras, columns)
    for problem in found.problems():
        raise ConfigError(f"{directory}: {problem.said}")
    return found.demonstrations()


def scan_demonstrations(
    directory: Path, cameras: Sequence[str] | None = None, columns: Columns | None = None
) -> "Scan":
    """Read the numbers of a dataset, whose problems are still to be asked for. Raises ConfigError for what is missing
    or cannot be read.
    """
    info = read_info(directory, columns)
    keys = _camera_keys(directory, info, cameras)
    tasks = read_tasks(directory, info)
    episodes = read_episodes(directory, info, [key for key in keys if info.cameras[key].video])
    files: list[Path] = []
    parts: list[dict[str, NDArray[Any]]] = []
    for path, table in read_tables(directory, "data", lambda name: name in info.vectors or name in _INDEX):
        parts.append(_read_part(path, table, info, tasks))
        count = len(parts[-1]["timestamp"])
        parts[-1] |= {"file": np.full(count, len(files), np.int32), "row": np.arange(count)}
        files.append(path)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    # Files and rows may stand in any order.
    order = np.lexsort((rows["frame_index"], rows["episode_index"]))
    return Scan(directory, info, keys, tasks, episodes, files, {name: x[order] for name, x in rows.items()})


@dataclass(frozen=True, slots=True)
class Scan:
    """The numbers of a dataset as its files have them, in order of episode and frame."""

    directory: Path
    info: Info
    keys: list[str]
    """The cameras that are read."""
    tasks: dict[int, str]
    episodes: list[Episode]
    files: list[Path]
    """Data files."""
    rows: dict[str, NDArray[Any]]
    """Columns [N]; `file` and `row` say where each row stands."""

    def demonstrations(self) -> Demonstrations:
        """The demonstrations, for a dataset without problems."""
        rows, info, directory = self.rows, self.info, self.directory
        lengths = [episode.length for episode in self.episodes]
        success = said_of_episodes([episode.success for episode in self.episodes], bool, "success", directory)
        scenarios = [episode.scenario for episode in self.episodes]
        return Demonstrations(
            frames=StoredFrames(directory, [self._camera(key) for key in self.keys], info.fps),
            state=np.zeros((sum(lengths), 0), np.float32) if info.state is None else rows[info.state],
            actions=rows[info.action],
            episode_index=np.repeat(np.arange(len(lengths)), lengths),
            frame_index=rows["frame_index"],
            instructions=[self.tasks[task] for task in rows["task_index"].tolist()],
            success=None if success is None else np.array(success, bool),
            scenarios=said_of_episodes(scenarios, str, "scenario", directory),
            cameras=tuple(key.removeprefix(lerobot.CAMERA_PREFIX) for key in self.keys),
            fps=info.fps,
        )

    def problems(self) -> Iterator[Problem]:
        """Data files that are not those of the episodes, and numbers that are not finite."""
        there, counts = np.unique(self.rows["episode_index"], return_counts=True)
        held = dict(zip(there.tolist(), counts.tolist(), strict=True))
        told = {episode.number: episode.length for episode in self.episodes}
        torn = False
        for number in sorted(held.keys() | told.keys()):
            if held.get(number, 0) != told.get(number, 0):
                torn = True
                yield Problem(
                    "file",
                    number,
                    None,
                    f"data files hold {held.get(number, 0)} frames of episode {number}, column 'length' of "
                    f"meta/episodes says {told.get(number, 0)}; a file is missing or of another dataset",
                )
        if not torn:
            for episode in self.episodes:
                yield from self._problems_of(episode)

    def _problems_of(self, episode: Episode) -> Iterator[Problem]:
        """The first problem of each kind in an episode."""
        part, fps, number = slice(episode.start, episode.start + episode.length), self.info.fps, episode.number
        if not np.array_equal(self.rows["frame_index"][part], np.arange(episode.length)):
            yield Problem(
                "index",
                number,
                None,
                f"column 'frame_index' of episode {number} does not count from 0 to {episode.length - 1}; frames are "
                "missing or doubled",
            )
            return
        times = self.rows["timestamp"][part]
        off = np.abs(times * fps - np.arange(episode.length))
        for frame in np.flatnonzero(~(off < _LATE))[:1].tolist():
            yield Problem(
                "time",
                number,
                frame,
                f"column 'timestamp' is {times[frame]:g} at episode {number}, frame {frame}, and {frame / fps:g} by "
                f"fps {fps} of {lerobot.INFO}; the frame of the video that belongs to it is not known",
            )
        for name, size in self.info.vectors.items():
            for frame, place in np.argwhere(~np.isfinite(self.rows[name][part]))[:1].tolist():
                yield Problem(
                    "finite",
                    number,
                    frame,
                    f"column {name!r} holds {self.rows[name][part][frame, place]} at episode {number}, frame {frame}, "
                    f"dimension {place} of {size}; mend the number, or leave the episode out",
                )

    def _camera(self, key: str) -> CameraFrames:
        """Where the frames of a camera are."""
        camera = self.info.cameras[key]
        if not camera.video:
            return CameraFrames(key, camera, self.files, self.rows["file"], self.rows["row"])
        places = [episode.places[key] for episode in self.episodes]
        files = {path: number for number, path in enumerate(dict.fromkeys(path for path, _ in places))}
        lengths = [episode.length for episode in self.episodes]
        first = np.repeat([position for _, position in places], lengths)
        file = np.repeat(np.array([files[path] for path, _ in places], np.int32), lengths)
        return CameraFrames(key, camera, list(files), file, first + self.rows["frame_index"])


def _camera_keys(directory: Path, info: Info, cameras: Sequence[str] | None) -> list[str]:
    """The features of the cameras that are wanted. Raises ConfigError for an unknown one, and for none."""
    known = {key.removeprefix(lerobot.CAMERA_PREFIX): key for key in info.cameras}
    names = list(known) if cameras is None else list(cameras)
    for name in names:
        if name not in known:
            raise ConfigError(f"{directory}: the dataset has no camera {name!r}; it has {', '.join(known)}")
    if not names:
        raise ConfigError(f"{directory}: no camera is wanted; it has {', '.join(known)}")
    return [known[name] for name in names]


def _read_part(path: Path, table: Any, info: Info, tasks: dict[int, str]) -> dict[str, NDArray[Any]]:
    """The columns of one data file. Raises ConfigError."""
    part: dict[str, NDArray[Any]] = {
        **{name: whole_numbers(table, name, path) for name in ("episode_index", "frame_index", "task_index")},
        "timestamp": numbers(table, "timestamp", path),
        **{name: vectors(table, name, size, path) for name, size in info.vectors.items()},
    }
    if unknown := sorted(set(part["task_index"].tolist()) - tasks.keys()):
        there = f"{lerobot.TASKS if info.joined else lerobot.TASK_LINES} has {', '.join(map(str, sorted(tasks)))}"
        raise ConfigError(f"{path}: column 'task_index' holds {unknown[0]}, and {there or 'no task'}")
    return part
