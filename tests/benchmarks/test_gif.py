"""Films as GIFs."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gif import write_gif
from treadle.reporting.video import write_video


def test_a_gif_has_the_frames_of_its_film(tmp_path: Path):
    frames = np.zeros((4, 64, 128, 3), np.uint8)
    for step, frame in enumerate(frames):
        frame[:, 32 * step : 32 * (step + 1)] = (200, 60, 50)
    write_video(tmp_path / "film.mp4", frames, fps=10)
    write_gif(tmp_path / "film.mp4", tmp_path / "film.gif", fps=20, width=64)
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.size == (64, 32)
        assert gif.n_frames == 4  # type: ignore[attr-defined]
        for step in range(4):
            gif.seek(step)
            row = np.asarray(gif.convert("RGB")).mean((0, 2))
            assert row.reshape(4, 16).mean(1).argmax() == step
