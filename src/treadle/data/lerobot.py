# av leaves the packets of a stream without a type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
"""The LeRobot dataset format: where files lie, what they declare, and how version 3.0 codes frames.

Layout and fields follow huggingface/lerobot, `src/lerobot/datasets` (Apache 2.0); no code of it is used.

Shapes: N frames, D numbers of a feature, H and W pixels.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

VERSION = "v3.0"
VERSIONS = ("v2.0", "v2.1", VERSION)
"""Those that are read."""
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
TASK_LINES, EPISODE_LINES = "meta/tasks.jsonl", "meta/episodes.jsonl"
EPISODE_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
"""Before version 3, where each episode has files of its own."""
STATE = "observation.state"
CAMERA_PREFIX = "observation.images."
FILES_PER_CHUNK = 1000
"""Files of one folder; `chunks_size` of the format."""

PIXELS = "yuv444p"
"""Small rendered frames have edges that colour of half resolution smears, hence 4:4:4."""

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Statistics = dict[str, list[Any]]
"""min, max, mean, std, count and quantiles of a feature; nested [3, 1, 1] for images."""


def camera_feature(height: int, width: int, fps: int) -> dict[str, Any]:
    """Declaration of a camera stored as video."""
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": PIXELS,
            "video.fps": fps,
            "video.channels": 3,
            "has_audio": False,
            "is_depth_map": False,
        },
    }


def index_features() -> dict[str, Any]:
    """Declarations of the columns that every dataset has."""
    whole = dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    dtypes = {"timestamp": "float32", **whole}
    return {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in dtypes.items()}


def vector_statistics(x: NDArray[Any]) -> Statistics:
    """Statistics over the rows of x [N, D], each a list of D; quantiles are exact."""
    x = x.astype(np.float64)
    plain = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    quantiles = {name: np.quantile(x, share, axis=0) for name, share in _QUANTILES.items()}
    return {name: value.tolist() for name, value in {**plain, **quantiles}.items()} | {"count": [len(x)]}


def channel_histogram(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each intensity occurs in frames [N, H, W, 3], per channel: [3, 256]. Histograms add up."""
    return np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])


def image_statistics(histogram: NDArray[np.int64], frames: int) -> Statistics:
    """Statistics of a `channel_histogram` [3, 256] with intensities in [0, 1], as [3, 1, 1]; exact to the intensity."""
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(1, keepdims=True)
    mean = share @ levels
    cumulative = share.cumsum(1)
    present = histogram > 0
    columns = {
        "min": levels[present.argmax(1)],
        "max": levels[255 - present[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
        **{name: levels[(cumulative >= q - 1e-12).argmax(1)] for name, q in _QUANTILES.items()},
    }
    return {name: value.reshape(3, 1, 1).tolist() for name, value in columns.items()} | {"count": [frames]}


class VideoWriter:
    """One mp4 file, written frame by frame. Frame i is shown at i / fps seconds."""

    def __init__(self, path: Path, fps: int, height: int, width: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.frames = 0
        self.bytes = 0
        self._container = av.open(str(path), "w")
        # A keyframe every other frame, and none that refers forward, is what LeRobot's random access wants.
        options = {"g": "2", "bf": "0", "crf": "10"}
        self._stream: VideoStream = self._container.add_stream("libx264", rate=fps, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = PIXELS
        self._time_base = Fraction(1, fps)

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames [N, H, W, 3], RGB."""
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self.frames, self._time_base
            self._mux(frame)
            self.frames += 1

    def close(self) -> None:
        """Write what the encoder still holds, and the index."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: "av.VideoFrame | None") -> None:
        packets: list[Any] = self._stream.encode(frame)
        for packet in packets:
            self.bytes += packet.size
            self._container.mux(packet)


def tasks_metadata() -> dict[str, Any]:
    """What makes pandas take the column `task` of the tasks' file as the index: LeRobot looks tasks up by it."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}
        for name, kind, dtype in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    return {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
