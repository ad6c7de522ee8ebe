# pyarrow has no types, so that all it returns is unknown to pyright.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Writing demonstrations as a LeRobot dataset of version 3.0.

Shapes: T frames of an episode, H and W pixels, P state, A action dimensions.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.errors import OutputError


def check_free(directory: Path) -> None:
    """Raises OutputError where a path is taken by anything but an empty folder."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(f"{directory} exists and is not an empty folder; choose another, or remove it")


class DemonstrationWriter:
    """Writes a dataset episode by episode; several share a parquet file and a video. A context manager.

    The dataset can be read after `close`, which an error in the `with` block prevents. Raises OutputError where the
    directory exists and is not empty, fps is not whole, or an episode does not fit what was declared.
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
        data_file_mb: int = 100,
        video_file_mb: int = 200,
    ) -> None:
        """A file is followed by another once it passes its size in MB."""
        check_free(directory)
        if round(fps) < 1 or abs(fps - round(fps)) > 1e-6:
            raise OutputError(f"{directory}: fps is {fps}, LeRobot's format wants a whole number above 0")
        self.directory = directory
        self._cameras = tuple(f"{lerobot.CAMERA_PREFIX}{name}" for name in cameras)
        self._frame_shape = (len(self._cameras), height, width, 3)
        self._names = {"action": tuple(action_names)}
        if state_names:
            self._names["observation.state"] = tuple(state_names)
        self._fps = round(fps)
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
                **{
                    key: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
                    for key, names in self._names.items()
                },
                **{key: lerobot.camera_feature(height, width, self._fps) for key in self._cameras},
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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._end_files()

    def add_episode(
        self,
        frames: NDArray[np.uint8],
        state: NDArray[np.float32],
        actions: NDArray[np.float32],
        instruction: str,
        success: bool,
        scenario: str,
    ) -> None:
        """Append one episode: T observations, frames [T, cameras, H, W, 3] in RGB and state [T, P], and the actions
        [T, A] taken at each. `success`: it reached the goal. `scenario`: its id.
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
        columns = {key: x.reshape(length, -1) for key, x in {**vectors, **scalars}.items()}
        statistics = {key: lerobot.vector_statistics(x) for key, x in columns.items()}
        for camera, key in enumerate(self._cameras):
            pixels = frames[:, camera]
            episode |= self._write_video(key, pixels)
            histogram = lerobot.channel_histogram(pixels)
            self._histograms[key] += histogram
            statistics[key] = lerobot.image_statistics(histogram, length)
        for key, values in statistics.items():
            episode |= {f"stats/{key}/{name}": value for name, value in values.items()}
        for key, x in columns.items():
            self._columns.setdefault(key, []).append(x)
        self._episodes.append(episode)
        self._frames += length

    def close(self) -> None:
        """Finish the files and write the metadata; further calls do nothing. Raises OutputError without an episode."""
        if self._closed:
            return
        self._end_files()
        if not self._episodes:
            raise OutputError(f"{self.directory}: no episode was added, so there is no dataset to write")
        self._write_metadata()

    def _end_files(self) -> None:
        self._closed = True
        if self._data is not None:
            self._data.close()
        for video in self._videos.values():
            video.close()

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
        for name, x in {"actions": actions, "state": state}.items():
            for frame, place in np.argwhere(~np.isfinite(x))[:1].tolist():
                raise OutputError(
                    f"{self.directory}: {name}[{frame}, {place}] is {x[frame, place]}; nobody can learn it"
                )
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
            video = lerobot.VideoWriter(path, self._fps, height, width)
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
        episodes = self.directory / lerobot.EPISODES.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), episodes)
        tasks = tasks.replace_schema_metadata({"pandas": json.dumps(lerobot.tasks_metadata())})
        pq.write_table(tasks, self.directory / lerobot.TASKS)
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
