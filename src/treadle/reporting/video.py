"""Videos that browsers play.

Shapes: T frames, H and W pixels.
"""

import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from treadle.errors import OutputError
from treadle.files import cannot_write

Frames = NDArray[np.uint8]

_INK, _PAPER = (236, 238, 242), (24, 26, 31)
_GOOD, _BAD = (74, 190, 122), (226, 105, 92)


def write_video(path: Path, frames: Frames, fps: float) -> None:
    """Write frames `[T, H, W, 3]` as an H.264 mp4, whole or not at all.

    H.264 stores colour for blocks of 2 x 2 pixels: an odd height or width grows by one repeated row or column.
    Raises OutputError where the folder cannot be written or the disk is full.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"frames must be uint8 [T, H, W, 3] with T > 0, not {frames.dtype} {list(frames.shape)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            whole = Path(folder) / path.name
            _encode(whole, frames, fps)
            whole.replace(path)
    except (OSError, FFmpegError) as error:
        raise cannot_write(path, error) from error


def read_video(path: Path) -> Frames:
    """Frames [T, H, W, 3] of a video. Raises OutputError where it cannot be read."""
    try:
        with av.open(str(path)) as container:
            frames = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]
            return np.stack(frames)
    except (OSError, FFmpegError, ValueError) as error:
        raise OutputError(f"{path}: not a video that can be read ({error})") from error


def side_by_side(films: Sequence[tuple[str, Frames, bool]]) -> Frames:
    """Films [T, H, W, 3] of one height as one, each with its name and outcome below; the last frame of those that end
    early stays.
    """
    longest = max(len(frames) for _, frames, _ in films)
    parts = [
        caption(np.pad(frames, ((0, longest - len(frames)), (0, 0), (0, 0), (0, 0)), mode="edge"), name, ok=ok)
        for name, frames, ok in films
    ]
    # A longer name takes more lines.
    tallest = max(part.shape[1] for part in parts)
    parts = [np.pad(part, ((0, 0), (0, tallest - part.shape[1]), (0, 0), (0, 0)), mode="edge") for part in parts]
    return np.concatenate(parts, axis=2)


def caption(frames: Frames, text: str, ok: bool) -> Frames:
    """Frames `[T, H, W, 3]` with a strip of text and a green or red mark below. Legible from 200 pixels on."""
    count, height, width, _ = frames.shape
    size = max(10, width // 26)
    font = ImageFont.load_default(size)
    margin = size // 2
    start = 2 * margin + size // 2
    lines = _wrap(text, font, width - start - margin)
    strip = margin * 2 + round(len(lines) * size * 1.3)
    strip += (height + strip) % 2

    image = Image.new("RGB", (width, strip), _PAPER)
    draw = ImageDraw.Draw(image)
    top = margin + size * 0.4
    draw.ellipse((margin, top, margin + size // 2, top + size // 2), fill=_GOOD if ok else _BAD)
    draw.multiline_text((start, margin), "\n".join(lines), fill=_INK, font=font, spacing=size * 0.3)
    below = np.broadcast_to(np.asarray(image), (count, strip, width, 3))
    return np.concatenate([frames, below], axis=1)


def _encode(path: Path, frames: Frames, fps: float) -> None:
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # The index goes first (faststart), so that a browser can begin before it has the whole file.
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "preset": "medium"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
