# What JSON holds is checked here, and is of no known type before that.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What `meta/info.json` of a LeRobot dataset declares, checked as it is read.

Shapes: D numbers of a feature, H and W pixels.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from treadle.data import lerobot
from treadle.errors import ConfigError
from treadle.reading import path_inside, read_json, shown

_FASTEST = 1000
"""Frames a second."""
_LARGEST = 2**20
"""Of the sides of a shape."""
_PLACES = {
    True: r"\{video_key\}|\{(chunk|file)_index(:0?\d{1,2}d)?\}",
    False: r"\{video_key\}|\{episode_(chunk|index)(:0?\d{1,2}d)?\}",
}
"""What a video's path may hold, in version 3 and before it."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that are read."""

    action: str = "action"
    state: str | None = None
    """None is `observation.state`, where the dataset has it."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera of a dataset."""

    height: int
    width: int
    video: bool
    """Frames are in videos; else each is a picture in the data files."""


@dataclass(frozen=True, slots=True)
class Info:
    """What `meta/info.json` declares, as far as it is read."""

    version: str
    fps: int
    action: str
    """The column of actions."""
    state: str | None
    """The column of proprioception, None where there is none."""
    vectors: dict[str, int]
    """D of both."""
    action_names: tuple[str, ...]
    """A name for each dimension of an action."""
    cameras: dict[str, Camera]
    """By feature."""
    video_path: str
    episodes_per_chunk: int
    """Episodes of a folder, before version 3."""

    @property
    def joined(self) -> bool:
        """Episodes share files: version 3."""
        return self.version == lerobot.VERSION


def read_info(directory: Path, columns: Columns | None = None) -> Info:
    """The declarations of a dataset. Raises ConfigError for one that is none, or that Treadle does not read."""
    path, columns = directory / lerobot.INFO, columns or Columns()
    if not path.is_file():
        raise ConfigError(f"{directory} is no LeRobot dataset: it has no {lerobot.INFO}")
    info: Any = read_json(path, ConfigError)
    if not _is_table(info):
        raise ConfigError(f"{path}: holds {type(info).__name__}, not a table of keys")
    version = info.get("codebase_version")
    if version not in lerobot.VERSIONS:
        raise ConfigError(
            f"{path}: codebase_version is {version!r:.120}, Treadle reads {', '.join(lerobot.VERSIONS)}; LeRobot's "
            "converters make newer ones of older ones"
        )
    fps, features = info.get("fps"), info.get("features")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= _FASTEST or fps % 1:
        raise ConfigError(f"{path}: fps is {fps!r:.120}; it must be a whole number above 0, of {_FASTEST} at most")
    if not _is_table(features) or not all(_is_table(feature) for feature in features.values()):
        raise ConfigError(
            f"{path}: features is no table of features, each with dtype and shape; found {shown(features)}"
        )
    for key in features:
        path_inside(directory, key, f"{path}: features", ConfigError)
    action, state = _find_columns(path, features, columns)
    cameras = {
        key: _read_camera(path, key, feature)
        for key, feature in features.items()
        if feature.get("dtype") in ("video", "image")
    }
    if not cameras:
        raise ConfigError(f"{path}: no feature of dtype 'video' or 'image', so the policy would see nothing")
    joined = version == lerobot.VERSION
    chunks = info.get("chunks_size", lerobot.FILES_PER_CHUNK)
    if type(chunks) is not int or not 0 < chunks <= _LARGEST:
        raise ConfigError(f"{path}: chunks_size is {chunks!r:.120}; it must be a whole number above 0")
    vectors = {key: _vector_size(path, key, features[key]) for key in (action, state) if key is not None}
    videos = any(camera.video for camera in cameras.values())
    return Info(
        version=version,
        fps=round(fps),
        action=action,
        state=state,
        vectors=vectors,
        action_names=_dimension_names(features[action], vectors[action]),
        cameras=cameras,
        video_path=_check_video_path(directory, path, info.get("video_path"), joined) if videos else "",
        episodes_per_chunk=chunks,
    )


def _find_columns(path: Path, features: Mapping[str, Any], columns: Columns) -> tuple[str, str | None]:
    """The columns of actions and of proprioception. Raises ConfigError for one that is not there."""
    state = columns.state or (lerobot.STATE if lerobot.STATE in features else None)
    for setting, key in (("action", columns.action), ("state", state)):
        if key is not None and key not in features:
            more = f"; name the column that holds it, by columns.{setting}" if setting == "state" else ""
            more = more or "; there is nothing to learn, or it has another name (columns.action)"
            raise ConfigError(f"{path}: no feature {key!r} among {', '.join(sorted(features)) or 'none'}{more}")
    return columns.action, state


def _check_video_path(directory: Path, path: Path, video_path: object, joined: bool) -> str:
    example = lerobot.VIDEO if joined else lerobot.EPISODE_VIDEO
    if not isinstance(video_path, str):
        raise ConfigError(f"{path}: video_path is {video_path!r:.120}; it must be a text such as {example!r}")
    rest = re.sub(_PLACES[joined], "", video_path)
    if "{" in rest or "}" in rest:
        raise ConfigError(f"{path}: video_path {video_path!r:.120} cannot be filled in; write {example!r}")
    path_inside(directory, rest or "x", f"{path}: video_path", ConfigError)
    return video_path


def _dimension_names(feature: Mapping[str, Any], size: int) -> tuple[str, ...]:
    """Names of a vector's dimensions; LeRobot has them as a list, or as a table of lists."""
    names: Any = feature.get("names")
    if _is_table(names) and len(names) == 1:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names):
        return tuple(str(name)[:80] for name in names)
    return tuple(f"a{place}" for place in range(size))


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


def _read_camera(path: Path, key: str, feature: dict[str, Any]) -> Camera:
    """A camera, whose declared shape has the channels first or last; the names of its axes say which."""
    shape, names, video = _shape(path, key, feature), feature.get("names"), feature["dtype"] == "video"
    if len(shape) == 3:
        axes = [str(name).rstrip("s") for name in names] if isinstance(names, list) else []
        if sorted(axes) == ["channel", "height", "width"] and shape[axes.index("channel")] == 3:
            return Camera(shape[axes.index("height")], shape[axes.index("width")], video)
        if shape[2] == 3:
            return Camera(shape[0], shape[1], video)
        if shape[0] == 3:
            return Camera(shape[1], shape[2], video)
    raise ConfigError(
        f"{path}: features[{key!r}] has shape {shape} with names {names!r:.120}; Treadle reads frames of colour, "
        "[height, width, 3] or [3, height, width]; remove the feature from the dataset if it is of another kind"
    )
