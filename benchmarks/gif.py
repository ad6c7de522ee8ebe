"""A film as a GIF, for pages that cannot play one: `python -m benchmarks.gif VIDEO GIF [--fps 10] [--width 480]`."""

import argparse
from pathlib import Path

from PIL import Image

from treadle.files import cannot_write
from treadle.reporting.video import read_video


def write_gif(video: Path, gif: Path, fps: float, width: int, hold: float = 1.5) -> None:
    """Write the frames of a video at another speed and width; the last one stays for `hold` seconds.

    Raises OutputError where the video cannot be read, or the file cannot be written.
    """
    frames = [Image.fromarray(frame) for frame in read_video(video)]
    size = (width, round(frames[0].height * width / frames[0].width))
    small = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    # One palette for all, so that still parts do not flicker.
    sheet = Image.new("RGB", (width, 3 * size[1]))
    for row, frame in enumerate((small[0], small[len(small) // 2], small[-1])):
        sheet.paste(frame, (0, row * size[1]))
    palette = sheet.quantize(128)
    shown = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in small]
    times = [round(1000 / fps)] * (len(shown) - 1) + [round(1000 * hold)]
    try:
        shown[0].save(gif, save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=True)
    except OSError as error:
        raise cannot_write(gif, error) from error


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("gif", type=Path)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=480)
    given = parser.parse_args()
    write_gif(given.video, given.gif, given.fps, given.width)


if __name__ == "__main__":
    main()
