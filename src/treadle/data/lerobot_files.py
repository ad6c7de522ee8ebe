# pyarrow has no types, so that all it returns is unknown to pyright.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false
"""The tables of a LeRobot dataset, checked as they are read: whatever is wrong is said with its file and column.

Shapes: N rows, D numbers of a feature, H and W pixels.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from treadle.data import lerobot
from treadle.errors import ConfigError
from treadle.reading import library, path_inside, read_json, shown

_FASTEST = 1000
"""Frames a second."""
_LARGEST = 2**20
"""Of the sides of a shape."""
_MOST_ROWS = 10**8


@dataclass(frozen=True, slots=True)
class Info:
    """What `meta/info.json` declares, as far as it is read."""

    fps: int
    vectors: dict[str, int]
    """D of `action` and, where there is one, of `observation.state`."""
    cameras: dict[str, tuple[int, int]]
    """(H, W) of each video feature."""
    video_path: str


def read_info(directory: Path) -> Info:
    """The declarations of a dataset. Raises ConfigError for one that is none, or that Treadle does not read."""
    path = directory / lerobot.INFO
    if not path.is_file():
        raise ConfigError(f"{directory} is no LeRobot dataset: it has no {lerobot.INFO}")
    info: Any = read_json(path, ConfigError)
    if not _is_table(info):
        raise ConfigError(f"{path}: holds {type(info).__name__}, not a table of keys")
    version = info.get("codebase_version")
    if version != lerobot.VERSION:
        raise ConfigError(
            f"{path}: codebase_version is {version!r:.120}, Treadle reads {lerobot.VERSION!r}; LeRobot's "
            "convert_dataset_v21_to_v30 converts older ones"
        )
    fps, features, video_path = info.get("fps"), info.get("features"), info.get("video_path")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= _FASTEST or fps % 1:
        raise ConfigError(f"{path}: fps is {fps!r:.120}; it must be a whole number above 0, of {_FASTEST} at most")
    if not _is_table(features) or not all(_is_table(feature) for feature in features.values()):
        raise ConfigError(
            f"{path}: features is no table of features, each with dtype and shape; found {shown(features)}"
        )
    if "action" not in features:
        raise ConfigError(f"{path}: no feature 'action' among {', '.join(sorted(features))}; there is nothing to learn")
    cameras = {key: feature for key, feature in features.items() if feature.get("dtype") == "video"}
    if not cameras:
        stored = [key for key, feature in features.items() if feature.get("dtype") == "image"]
        raise ConfigError(
            f"{path}: no feature of dtype 'video'; Treadle reads cameras that are stored as videos"
            + (f", and {', '.join(stored)} are stored as images; LeRobot converts them" if stored else "")
        )
    if not isinstance(video_path, str):
        raise ConfigError(f"{path}: video_path is {video_path!r:.120}; it must be a text such as {lerobot.VIDEO!r}")
    rest = re.sub(r"\{video_key\}|\{(chunk|file)_index(:0?\d{1,2}d?)?\}", "", video_path)
    if "{" in rest or "}" in rest:
        raise ConfigError(f"{path}: video_path {video_path!r:.120} cannot be filled in; write {lerobot.VIDEO!r}")
    path_inside(directory, rest or "x", f"{path}: video_path", ConfigError)
    vectors = [key for key in ("action", "observation.state") if key in features]
    for key in features:
        path_inside(directory, key, f"{path}: features", ConfigError)
    return Info(
        fps=round(fps),
        vectors={key: _vector_size(path, key, features[key]) for key in vectors},
        cameras={key: _frame_size(path, key, feature) for key, feature in cameras.items()},
        video_path=video_path,
    )


def read_tasks(directory: Path) -> dict[int, str]:
    """Instructions by `task_index`. The text is the index of a pandas table: a column `task`, or one without a name."""
    path = directory / lerobot.TASKS
    table = _read(path, directory)
    texts = [name for name in ("task", "__index_level_0__") if name in table.column_names]
    if not texts:
        raise ConfigError(f"{path} has no column 'task'; it has {', '.join(table.column_names)}")
    numbers, found = whole_numbers(table, "task_index", path), table[texts[0]].to_pylist()
    if wrong := [text for text in found if not isinstance(text, str)]:
        raise ConfigError(f"{path}: column {texts[0]!r} holds {wrong[0]!r}, which is no text")
    return dict(zip(numbers.tolist(), found, strict=True))


def read_tables(directory: Path, folder: str) -> list[tuple[Path, Any]]:
    """The parquet files below a folder, one table each, without the statistics in them."""
    paths = sorted((directory / folder).glob("*/*.parquet"))
    if not paths:
        raise ConfigError(f"{directory}: {folder} is missing; the dataset is incomplete")
    return [(path, _read(path, directory)) for path in paths]


def column(table: Any, name: str, path: Path) -> Any:
    """A column without gaps as one array. Raises ConfigError where it is not there, or a row of it is null."""
    if name not in table.column_names:
        raise ConfigError(f"{path} has no column {name!r}; it has {', '.join(table.column_names)}")
    found = table[name].combine_chunks()
    if isinstance(found, pa.ChunkedArray):
        found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], found.type)
    found = found.storage if isinstance(found, pa.ExtensionArray) else found
    if found.null_count:
        row = int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])
        raise ConfigError(f"{path}: column {name!r} has no value in row {row}")
    return found


def whole_numbers(table: Any, name: str, path: Path) -> NDArray[np.int64]:
    """A column [N] of whole numbers, of whatever type. Raises ConfigError."""
    return _cast(column(table, name, path), pa.int64(), name, path, "whole numbers")


def numbers(table: Any, name: str, path: Path) -> NDArray[np.float64]:
    """A column [N] of finite numbers. Raises ConfigError."""
    found: NDArray[np.float64] = _cast(column(table, name, path), pa.float64(), name, path, "numbers")
    for row in np.flatnonzero(~np.isfinite(found))[:1].tolist():
        raise ConfigError(f"{path}: column {name!r} is {found[row]} in row {row}")
    return found


def vectors(table: Any, name: str, size: int, path: Path) -> NDArray[np.float32]:
    """A column of numbers, or of lists of `size` of them in every row, as [N, D] float32. Raises ConfigError."""
    found = column(table, name, path)
    if pa.types.is_nested(found.type):
        if pa.types.is_struct(found.type) or pa.types.is_nested(found.type.value_type):
            raise ConfigError(f"{path}: column {name!r} holds {found.type}; Treadle reads lists of {size} numbers")
        lengths = pc.list_value_length(found).to_numpy(zero_copy_only=False)
    else:
        lengths = np.ones(len(found), np.int64)
    for row in np.flatnonzero(lengths != size)[:1].tolist():
        raise ConfigError(
            f"{path}: column {name!r} has {lengths[row]} numbers in row {row}, and {lerobot.INFO} declares {size}"
        )
    values = found.flatten() if pa.types.is_nested(found.type) else found
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // size
        raise ConfigError(f"{path}: column {name!r} has an empty place in row {row}")
    # Numbers beyond float32 become infinite, and are refused as such with their episode.
    with np.errstate(over="ignore"):
        return _cast(values, pa.float64(), name, path, "numbers").astype(np.float32).reshape(-1, size)


def _cast(values: Any, kind: Any, name: str, path: Path, wanted: str) -> NDArray[Any]:
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise ConfigError(f"{path}: column {name!r} holds {values.type}, not {wanted}")
    try:
        return pc.cast(values, kind).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path}: column {name!r} does not hold {wanted}: {error}") from error


def _read(path: Path, directory: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{directory}: {path.relative_to(directory)} is missing; the dataset is incomplete")
    with library(path, ConfigError, "parquet"):
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > _MOST_ROWS:
            raise ConfigError(f"{path}: {file.metadata.num_rows} rows; a file of a dataset has at most {_MOST_ROWS}")
        names: Iterable[str] = file.schema_arrow.names
        return file.read([name for name in names if not name.startswith("stats/")])


def _is_table(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _shape(path: Path, key: str, feature: dict[str, Any]) -> list[int]:
    shape: Any = feature.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size <= _LARGEST for size in shape):
        raise ConfigError(
            f"{path}: features[{key!r}] has shape {shape!r:.120}; it must be a list of whole numbers above 0, of "
            f"{_LARGEST} at most"
        )
    return shape


def _vector_size(path: Path, key: str, feature: dict[str, Any]) -> int:
    shape = _shape(path, key, feature)
    if len(shape) > 1:
        raise ConfigError(f"{path}: features[{key!r}] has shape {shape}; Treadle reads vectors, one number or [D]")
    return math.prod(shape)


def _frame_size(path: Path, key: str, feature: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of a video, whose declared shape has the channels first or last; the names of its axes say which."""
    shape, names = _shape(path, key, feature), feature.get("names")
    if len(shape) == 3:
        axes = [str(name).rstrip("s") for name in names] if isinstance(names, list) else []
        if sorted(axes) == ["channel", "height", "width"] and shape[axes.index("channel")] == 3:
            return shape[axes.index("height")], shape[axes.index("width")]
        if shape[2] == 3:
            return shape[0], shape[1]
        if shape[0] == 3:
            return shape[1], shape[2]
    raise ConfigError(
        f"{path}: features[{key!r}] has shape {shape} with names {names!r:.120}; Treadle reads videos of colour, "
        "[height, width, 3] or [3, height, width]; remove the feature from the dataset if it is of another kind"
    )
