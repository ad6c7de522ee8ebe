# pyarrow has no types, so that all it returns is unknown to pyright.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Demonstrations on disk, as a LeRobot dataset of version 3.0.

Shapes: T frames of an episode, N frames of all episodes, E episodes, H and W pixels, P state, A action dimensions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.errors import ConfigError, OutputError


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
    """[N]"""
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


class ActionStatistics(TypedDict):
    """One entry a dimension, as in the `action` part of OpenVLA's dataset_statistics.json."""

    q01: list[float]
    q99: list[float]
    min: list[float]
    max: list[float]
    mean: list[float]
    std: list[float]
    mask: list[bool]


def action_statistics(actions: NDArray[np.float32], mask: Sequence[bool] | None = None) -> ActionStatistics:
    """Statistics over actions [N, A] that a policy normalises by.

    Args:
        actions: Raw units.
        mask: A flags, False for dimensions that are not normalised (a gripper in [0, 1]); by default all are.

    Raises:
        ValueError: No actions, or a mask of another length.
    """
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"actions must be [N, A] with N > 0, found shape {actions.shape}")
    flags = [True] * actions.shape[1] if mask is None else list(mask)
    if len(flags) != actions.shape[1]:
        raise ValueError(f"mask has {len(flags)} flags, actions {actions.shape[1]} dimensions")
    x = actions.astype(np.float64)
    q01, q99 = np.quantile(x, [0.01, 0.99], axis=0)
    return {
        "q01": q01.tolist(),
        "q99": q99.tolist(),
        "min": x.min(0).tolist(),
        "max": x.max(0).tolist(),
        "mean": x.mean(0).tolist(),
        "std": x.std(0).tolist(),
        "mask": flags,
    }


class DemonstrationWriter:
    """Writes a dataset episode by episode; several share a parquet file and a video. A context manager.

    The dataset can be read after `close`.

    Raises:
        OutputError: The directory exists and is not empty, fps is not whole, or an episode does not fit what was
            declared.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fps: float,
        cameras: Sequence[str],
        height: int,
        width: int,
        action_names: Sequence[str],
        state_names: Sequence[str] = (),
        robot_type: str = "unknown",
        lossless: bool = False,
        data_file_mb: int = 100,
        video_file_mb: int = 200,
    ) -> None:
        """`lossless` keeps every pixel, in files that fewer players show; a file is followed by another once it passes
        its size in MB.
        """
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise OutputError(f"{directory} exists and is not an empty folder; choose another, or remove it")
        if round(fps) < 1 or abs(fps - round(fps)) > 1e-6:
            raise OutputError(f"{directory}: fps is {fps}, LeRobot's format wants a whole number above 0")
        self.directory = directory
        self._cameras = tuple(f"{lerobot.CAMERA_PREFIX}{name}" for name in cameras)
        self._frame_shape = (len(self._cameras), height, width, 3)
        self._names = {"action": tuple(action_names)}
        if state_names:
            self._names["observation.state"] = tuple(state_names)
        self._fps = round(fps)
        self._lossless = lossless
        pixels = lerobot.pixel_format(lossless=lossless)
        self._info: dict[str, Any] = {
            "codebase_version": lerobot.VERSION,
            "robot_type": robot_type,
            "fps": self._fps,
            "chunks_size": lerobot.FILES_PER_CHUNK,
            "data_files_size_in_mb": data_file_mb,
            "video_files_size_in_mb": video_file_mb,
            "data_path": lerobot.DATA,
            "video_path": lerobot.VIDEO,
            "features": {
                **{key: lerobot.vector_feature(names) for key, names in self._names.items()},
                **{key: lerobot.camera_feature(height, width, self._fps, pixels) for key in self._cameras},
                **lerobot.index_features(),
            },
        }
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._histograms = {key: np.zeros((3, 256), np.int64) for key in self._cameras}
        self._frames = 0
        self._data: Any = None
        self._data_bytes = 0
        self._data_file = 0
        self._videos: dict[str, lerobot.VideoWriter] = {}
        self._video_file = dict.fromkeys(self._cameras, 0)
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add_episode(
        self,
        frames: NDArray[np.uint8],
        state: NDArray[np.float32],
        actions: NDArray[np.float32],
        instruction: str,
        success: bool,
        scenario: str,
    ) -> None:
        """Append one episode: the T observations, and the action taken at each.

        Args:
            frames: [T, cameras, H, W, 3], RGB.
            state: [T, P].
            actions: [T, A].
            instruction: What was asked.
            success: Whether the episode reached the goal.
            scenario: Id of the scenario.
        """
        self._check(frames, state, actions)
        index, length = len(self._episodes), len(actions)
        task = self._tasks.setdefault(instruction, len(self._tasks))
        vectors = {"action": actions.astype(np.float32, copy=False)}
        if "observation.state" in self._names:
            vectors["observation.state"] = state.astype(np.float32, copy=False)
        steps = np.arange(length)
        scalars: dict[str, NDArray[Any]] = {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, index),
            "index": self._frames + steps,
            "task_index": np.full(length, task),
        }
        episode: dict[str, Any] = {
            "episode_index": index,
            "tasks": [instruction],
            "length": length,
            "success": success,
            "scenario": scenario,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **self._write_data(vectors, scalars),
        }
        statistics = {
            key: lerobot.vector_statistics(x.reshape(length, -1)) for key, x in {**vectors, **scalars}.items()
        }
        for camera, key in enumerate(self._cameras):
            pixels = frames[:, camera]
            episode |= self._write_video(key, pixels)
            histogram = lerobot.channel_histogram(pixels)
            self._histograms[key] += histogram
            statistics[key] = lerobot.image_statistics(histogram, length)
        for key, values in statistics.items():
            episode |= {f"stats/{key}/{name}": value for name, value in values.items()}
        for key, x in {**vectors, **scalars}.items():
            self._columns.setdefault(key, []).append(x.reshape(length, -1))
        self._episodes.append(episode)
        self._frames += length

    def close(self) -> None:
        """Finish the files and write the metadata; further calls do nothing.

        Raises:
            OutputError: No episode was added.
        """
        if self._closed:
            return
        self._closed = True
        if self._data is not None:
            self._data.close()
        for video in self._videos.values():
            video.close()
        if not self._episodes:
            raise OutputError(f"{self.directory}: no episode was added, so there is no dataset to write")
        self._write_metadata()

    def _check(self, frames: NDArray[np.uint8], state: NDArray[np.float32], actions: NDArray[np.float32]) -> None:
        if self._closed:
            raise OutputError(f"{self.directory}: the dataset is closed; episodes cannot be added any more")
        length = len(actions)
        if not length:
            raise OutputError(f"{self.directory}: an episode without a frame cannot be stored")
        wanted = {"frames": (length, *self._frame_shape), "actions": (length, len(self._names["action"]))}
        wanted["state"] = (length, len(self._names.get("observation.state", ())))
        for name, x in {"frames": frames, "actions": actions, "state": state}.items():
            if x.shape != wanted[name]:
                raise OutputError(f"{self.directory}: {name} has shape {x.shape}, the dataset wants {wanted[name]}")
        if frames.dtype != np.uint8:
            raise OutputError(f"{self.directory}: frames must be uint8, found {frames.dtype}")

    def _write_data(self, vectors: dict[str, NDArray[np.float32]], scalars: dict[str, NDArray[Any]]) -> dict[str, int]:
        """One row group; returns where it lies."""
        columns: dict[str, Any] = {}
        for key, x in vectors.items():
            values: Any = pa.array(x.ravel())
            # LeRobot declares one number as a scalar.
            columns[key] = values if x.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(values, x.shape[1])
        columns |= {key: pa.array(x) for key, x in scalars.items()}
        table: Any = pa.table(columns)
        if self._data is not None and self._data_bytes >= self._info["data_files_size_in_mb"] * 2**20:
            self._data.close()
            self._data, self._data_bytes, self._data_file = None, 0, self._data_file + 1
        place = _place(self._data_file)
        if self._data is None:
            path = self.directory / lerobot.DATA.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data = pq.ParquetWriter(path, table.schema, compression="snappy")
        self._data.write_table(table)
        self._data_bytes += table.nbytes
        return {f"data/{name}": value for name, value in place.items()}

    def _write_video(self, key: str, pixels: NDArray[np.uint8]) -> dict[str, float]:
        """Append to the camera's file; returns where the frames lie."""
        video = self._videos.pop(key, None)
        if video is not None and video.bytes >= self._info["video_files_size_in_mb"] * 2**20:
            video.close()
            video = None
            self._video_file[key] += 1
        place = _place(self._video_file[key])
        if video is None:
            path = self.directory / lerobot.VIDEO.format(video_key=key, **place)
            height, width = pixels.shape[1:3]
            video = lerobot.VideoWriter(path, self._fps, height, width, lossless=self._lossless)
        self._videos[key] = video
        start = video.frames
        video.write(pixels)
        return {
            **{f"videos/{key}/{name}": value for name, value in place.items()},
            f"videos/{key}/from_timestamp": start / self._fps,
            f"videos/{key}/to_timestamp": video.frames / self._fps,
        }

    def _write_metadata(self) -> None:
        tasks: Any = pa.table({"task_index": pa.array(list(self._tasks.values())), "task": list(self._tasks)})
        described = lerobot.pandas_metadata("task", {"task_index": "int64", "task": "object"})
        episodes = self.directory / lerobot.EPISODES.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes)
        pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(described)}), self.directory / lerobot.TASKS)
        statistics = {key: lerobot.vector_statistics(np.concatenate(parts)) for key, parts in self._columns.items()}
        for key, histogram in self._histograms.items():
            statistics[key] = lerobot.image_statistics(histogram, self._frames)
        self._info |= {
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "splits": {"train": f"0:{len(self._episodes)}"},
        }
        (self.directory / lerobot.STATS).write_text(json.dumps(statistics, indent=4))
        (self.directory / lerobot.INFO).write_text(json.dumps(self._info, indent=4))


def _place(file: int) -> dict[str, int]:
    return {"chunk_index": file // lerobot.FILES_PER_CHUNK, "file_index": file % lerobot.FILES_PER_CHUNK}


def read_demonstrations(directory: Path) -> Demonstrations:
    """Read a whole dataset into memory; each video file is decoded once, from its start.

    Raises:
        ConfigError: The directory holds no LeRobot dataset, one of another version, or lacks a file.
    """
    info = _read_info(directory)
    features = info["features"]
    cameras = tuple(key for key, feature in features.items() if feature["dtype"] == "video")
    shapes = {tuple(features[key]["shape"]) for key in cameras}
    if len(shapes) != 1 or "action" not in features:
        raise ConfigError(
            f"{directory}: Treadle reads datasets with an 'action' and with videos of one size; found features "
            f"{sorted(features)} with video shapes {sorted(shapes)}"
        )
    episodes = sorted(_rows(directory, "meta/episodes"), key=lambda row: row["episode_index"])
    columns = ["action", "episode_index", "frame_index", "index", "task_index"]
    columns += ["observation.state"] if "observation.state" in features else []
    table: Any = _table(directory, "data", columns).sort_by("index")
    tasks = {row["task_index"]: row["task"] for row in _rows(directory, lerobot.TASKS)}
    total = sum(row["length"] for row in episodes)
    if table.num_rows != total:
        raise ConfigError(
            f"{directory}: data files hold {table.num_rows} frames, the episodes {total}; a file is missing or of "
            "another dataset"
        )
    actions = _vectors(table, "action")
    described = set[str](episodes[0]) if episodes else set[str]()
    return Demonstrations(
        frames=_read_frames(directory, info, cameras, episodes, next(iter(shapes))),
        state=_vectors(table, "observation.state") if len(columns) == 6 else np.zeros((len(actions), 0), np.float32),
        actions=actions,
        episode_index=table["episode_index"].to_numpy(),
        frame_index=table["frame_index"].to_numpy(),
        instructions=[tasks[task] for task in table["task_index"].to_pylist()],
        success=np.array([row["success"] for row in episodes], bool) if "success" in described else None,
        scenarios=[row["scenario"] for row in episodes] if "scenario" in described else None,
        cameras=tuple(key.removeprefix(lerobot.CAMERA_PREFIX) for key in cameras),
        fps=info["fps"],
    )


def _read_info(directory: Path) -> dict[str, Any]:
    path = directory / lerobot.INFO
    if not path.is_file():
        raise ConfigError(f"{directory} is no LeRobot dataset: it has no {lerobot.INFO}")
    try:
        info: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    version = info.get("codebase_version")
    if version != lerobot.VERSION:
        raise ConfigError(
            f"{directory}: codebase_version is {version!r}, Treadle reads {lerobot.VERSION!r}; LeRobot's "
            "convert_dataset_v21_to_v30 converts older ones"
        )
    if missing := [key for key in ("fps", "features", "video_path") if key not in info]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}")
    return info


def _table(directory: Path, where: str, columns: list[str] | None = None) -> Any:
    """A parquet file, or all those below a folder, as one table."""
    path = directory / where
    paths = sorted(path.glob("*/*.parquet")) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise ConfigError(f"{directory}: {where} is missing; the dataset is incomplete")
    try:
        # Schemas of files may differ in metadata and in optional columns.
        return pa.concat_tables([pq.ParquetFile(file).read(columns) for file in paths], promote_options="default")
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} cannot be read as parquet: {error}") from error


def _rows(directory: Path, where: str) -> list[dict[str, Any]]:
    table = _table(directory, where)
    return table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()


def _vectors(table: Any, key: str) -> NDArray[np.float32]:
    """A column of numbers or of lists of one length as [N, D] float32."""
    column = table[key].combine_chunks()
    values = column.flatten() if pa.types.is_nested(column.type) else column
    return values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(table.num_rows, -1)


def _read_frames(
    directory: Path, info: dict[str, Any], cameras: tuple[str, ...], episodes: list[dict[str, Any]], shape: Any
) -> NDArray[np.uint8]:
    """Frames [N, cameras, H, W, 3]; the frame at position i of a file is shown at i / fps."""
    frames = np.empty((sum(row["length"] for row in episodes), len(cameras), *shape), np.uint8)
    for camera, key in enumerate(cameras):
        rows_of_file: dict[Path, dict[int, int]] = {}
        for row in episodes:
            place = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
            path = directory / info["video_path"].format(video_key=key, **place)
            first = round(row[f"videos/{key}/from_timestamp"] * info["fps"])
            start = row["dataset_from_index"]
            rows_of_file.setdefault(path, {}).update({first + i: start + i for i in range(row["length"])})
        for path, rows in rows_of_file.items():
            if not path.is_file():
                raise ConfigError(f"{directory}: {path.relative_to(directory)} is missing; the dataset is incomplete")
            _decode_into(frames[:, camera], path, rows)
    return frames


def _decode_into(frames: NDArray[np.uint8], path: Path, rows: dict[int, int]) -> None:
    """Put the frames of a file into `frames` [N, H, W, 3], where `rows` maps positions in the file to rows."""
    last, position = max(rows), -1
    try:
        for position, pixels in enumerate(lerobot.decode_video(path)):
            if position in rows:
                frames[rows[position]] = pixels
            if position == last:
                return
    except FFmpegError as error:
        raise ConfigError(f"{path} cannot be decoded: {error}") from error
    raise ConfigError(f"{path} holds {position + 1} frames, its episodes need {last + 1}; the file is incomplete")
