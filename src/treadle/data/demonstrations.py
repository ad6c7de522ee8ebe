# pyarrow has no types, so that all it returns is unknown to pyright.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Demonstrations, read from a LeRobot dataset of version 3.0.

Shapes: T frames of an episode, N frames of all episodes, E episodes, H and W pixels, P state, A action dimensions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.errors import ConfigError


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


def action_statistics(actions: NDArray[np.float32], mask: Sequence[bool] | None = None) -> dict[str, list[Any]]:
    """Statistics over actions [N, A], in raw units, that a policy normalises by: an entry a dimension, as in the
    `action` part of OpenVLA's dataset_statistics.json.

    `mask`: A flags, False for dimensions that are not normalised (a gripper in [0, 1]); by default all are. Raises
    ValueError for no actions, and for a mask of another length.
    """
    if actions.ndim != 2 or not len(actions):
        raise ValueError(f"actions must be [N, A] with N > 0, found shape {actions.shape}")
    flags = [True] * actions.shape[1] if mask is None else list(mask)
    if len(flags) != actions.shape[1]:
        raise ValueError(f"mask has {len(flags)} flags, actions {actions.shape[1]} dimensions")
    found = lerobot.vector_statistics(actions)
    return {name: found[name] for name in ("q01", "q99", "min", "max", "mean", "std")} | {"mask": flags}


def read_demonstrations(directory: Path) -> Demonstrations:
    """Read a whole dataset into memory; each video file is decoded once, from its start.

    Raises ConfigError where the directory holds no LeRobot dataset, one of another version, or lacks a file.
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
