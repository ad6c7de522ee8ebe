# pyarrow and av leave much of what they return without a type.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""Frames of a dataset that stay in their files until they are asked for.

Shapes: N frames of all episodes, n some of them, H and W pixels.
"""

import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from treadle.data import lerobot
from treadle.data.lerobot_info import Camera
from treadle.errors import ConfigError
from treadle.reading import library

_OPEN = 16
"""Files of a camera that are kept open."""
_FORWARD = 24
"""Frames up to which going on is cheaper than to look for the nearest keyframe."""
_RATE_TOLERANCE = 0.05
"""Of a video's frame rate. Joined files have an average that is not whole."""


@dataclass(frozen=True, slots=True)
class CameraFrames:
    """Where the frames of one camera are."""

    key: str
    camera: Camera
    files: Sequence[Path]
    file: NDArray[np.int32]
    """[N] which of the files."""
    position: NDArray[np.int64]
    """[N] which frame of the video, or which row of the data file."""


class StoredFrames:
    """Frames of N moments that are decoded when rows of them are asked for, in any order.

    What it keeps does not grow with what was asked for: some open files of each camera, and a frame of each.
    """

    def __init__(self, directory: Path, cameras: Sequence[CameraFrames], fps: int) -> None:
        self._directory, self._cameras, self._fps = directory, cameras, fps
        self._opened: list[OrderedDict[int, _Reader]] = [OrderedDict() for _ in cameras]
        self.sizes = [(each.camera.height, each.camera.width) for each in cameras]
        """(H, W) of each camera."""

    def __len__(self) -> int:
        return len(self._cameras[0].file)

    @property
    def uniform(self) -> bool:
        """All cameras have one size."""
        return len(set(self.sizes)) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of all frames, decoded."""
        return len(self) * sum(3 * height * width for height, width in self.sizes)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Frames [n, cameras, H, W, 3], or where cameras differ in size [n, H, W, 3] of each. Raises ConfigError for a
        file that is missing or broken.
        """
        asked = np.arange(len(self))[rows]
        whole = np.empty((len(asked), len(self.sizes), *self.sizes[0], 3), np.uint8) if self.uniform else None
        out = (
            [np.empty((len(asked), *size, 3), np.uint8) for size in self.sizes]
            if whole is None
            else whole.swapaxes(0, 1)
        )
        for place, camera in enumerate(self._cameras):
            # File by file and forward in each, so that a video is decoded once for all that is near each other.
            order = np.lexsort((camera.position[asked], camera.file[asked]))
            for row in order.tolist():
                index = int(asked[row])
                file, position = int(camera.file[index]), int(camera.position[index])
                out[place][row] = self._reader(place, file).read(position)
        return list(out) if whole is None else whole

    def head(self, count: int) -> "StoredFrames":
        """The first `count` frames."""
        parts = [replace(c, file=c.file[:count], position=c.position[:count]) for c in self._cameras]
        return StoredFrames(self._directory, parts, self._fps)

    def close(self) -> None:
        """Close all files; they are opened again where more is asked for."""
        for opened in self._opened:
            while opened:
                opened.popitem()[1].close()

    def _reader(self, place: int, file: int) -> "_Reader":
        opened, camera = self._opened[place], self._cameras[place]
        if file in opened:
            opened.move_to_end(file)
            return opened[file]
        path = camera.files[file]
        if not path.is_file():
            raise ConfigError(
                f"{self._directory}: {path.relative_to(self._directory)} is missing; the dataset is incomplete"
            )
        shape = (camera.camera.height, camera.camera.width, 3)
        reader = _Video(path, self._fps, shape) if camera.camera.video else _Pictures(path, camera.key, shape)
        opened[file] = reader
        if len(opened) > _OPEN:
            opened.popitem(last=False)[1].close()
        return reader


class _Reader(Protocol):
    def read(self, position: int) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


class _Video:
    """A video; the frame at position i is shown at i / fps."""

    def __init__(self, path: Path, fps: int, shape: tuple[int, int, int]) -> None:
        self._path, self._fps, self._shape = path, fps, shape
        self._at, self._frame = -1, None
        with library(path, ConfigError, "a video"):
            self._container: Any = av.open(str(path))
            self._stream: Any = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            rate = self._stream.average_rate
            if rate is not None and abs(float(rate) / fps - 1) > _RATE_TOLERANCE:
                raise ConfigError(f"{path} has {float(rate):g} frames a second, {lerobot.INFO} declares fps {fps}")
            self._left: Any = self._container.decode(self._stream)

    def read(self, position: int) -> NDArray[np.uint8]:
        with library(self._path, ConfigError, "a video"):
            if not 0 <= position - self._at <= _FORWARD:
                self._seek(position)
            while self._at < position:
                frame = next(self._left, None)
                if frame is None:
                    break
                self._at, self._frame = round(frame.time * self._fps), frame
            if self._at != position or self._frame is None:
                raise ConfigError(
                    f"{self._path} has no frame at {position / self._fps:g} s, which an episode of it needs; the file "
                    "is incomplete"
                )
            pixels = self._frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
        if pixels.shape != self._shape:
            raise ConfigError(
                f"{self._path}: frames are {list(pixels.shape)}, {lerobot.INFO} declares {list(self._shape)}"
            )
        return pixels

    def _seek(self, position: int) -> None:
        """Go to the last keyframe before a position."""
        self._container.seek(round(position / self._fps / self._stream.time_base), stream=self._stream)
        self._left = self._container.decode(self._stream)
        self._at, self._frame = -1, None

    def close(self) -> None:
        self._container.close()


class _Pictures:
    """Pictures in a column of a data file, one row group of which is kept."""

    def __init__(self, path: Path, key: str, shape: tuple[int, int, int]) -> None:
        self._path, self._key, self._shape = path, key, shape
        with library(path, ConfigError, "parquet"):
            self._file: Any = pq.ParquetFile(path)
            if key not in self._file.schema_arrow.names:
                raise ConfigError(f"{path} has no column {key!r}; the dataset is incomplete")
            meta = self._file.metadata
            self._ends = np.cumsum([meta.row_group(group).num_rows for group in range(meta.num_row_groups)])
        self._group, self._rows = -1, None

    def read(self, position: int) -> NDArray[np.uint8]:
        where = f"{self._path}: column {self._key!r}, row {position}"
        group = int(np.searchsorted(self._ends, position, side="right"))
        with library(where, ConfigError, "a picture"):
            if group != self._group or self._rows is None:
                self._rows = self._file.read_row_group(group, columns=[self._key])[self._key]
                self._group = group
            start = int(self._ends[group - 1]) if group else 0
            value: Any = self._rows[position - start].as_py()
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise ConfigError(
                    f"{where}: found {type(content).__name__}; Treadle reads pictures whose bytes are here"
                )
            with Image.open(io.BytesIO(content)) as picture:
                # Before it is decoded: a picture of a few bytes may have any size.
                found = (picture.height, picture.width)
                if found != self._shape[:2]:
                    raise ConfigError(
                        f"{where}: the picture is {list(found)}, {lerobot.INFO} declares {list(self._shape[:2])}"
                    )
                return np.asarray(picture.convert("RGB"), np.uint8)

    def close(self) -> None:
        self._file.close()
