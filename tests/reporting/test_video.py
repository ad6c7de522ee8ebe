from pathlib import Path

import av
import numpy as np
import pytest
from synthetic_run import moving_square

from treadle.errors import OutputError
from treadle.reporting.video import caption, read_video, side_by_side, write_video


def _decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def test_a_video_decodes_to_its_frames(tmp_path: Path) -> None:
    frames = moving_square(12, 64, 96)
    write_video(tmp_path / "new" / "film.mp4", frames, fps=10)
    decoded = _decode(tmp_path / "new" / "film.mp4")
    assert decoded.shape == frames.shape
    # Lossy, and in a narrower range of colours; yet each frame is nearest to itself.
    distance = np.abs(decoded[:, None].astype(int) - frames[None]).mean(axis=(2, 3, 4))
    assert distance.diagonal().max() < 6
    assert (distance.argmin(axis=1) == np.arange(12)).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.mp4"]


def test_the_index_is_before_the_data(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", moving_square(4), fps=10)
    content = (tmp_path / "film.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_odd_sizes_grow_by_one_pixel(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", moving_square(3, 33, 47), fps=7.5)
    assert _decode(tmp_path / "film.mp4").shape == (3, 34, 48, 3)


def test_a_failure_leaves_the_old_film(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_video(path, moving_square(3), fps=10)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="uint8"):
        write_video(path, moving_square(3).astype(np.float32), fps=10)  # pyright: ignore[reportArgumentType]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"film\.mp4"):
        write_video(tmp_path / "file" / "film.mp4", moving_square(3), fps=10)
    assert path.read_bytes() == before


def test_a_caption_stands_below_and_leaves_the_frames_alone() -> None:
    frames = moving_square(3, 192, 256)
    shown = caption(frames, "put the red cube on the green plate " * 3, ok=True)
    assert shown.shape[2] == 256
    assert shown.shape[1] > 192 + 30
    assert (shown[:, :192] == frames).all()
    assert (shown[:, 192:] != caption(frames, "put the red cube on the green plate " * 3, ok=False)[:, 192:]).any()


def test_a_video_is_read_as_it_is_decoded(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", moving_square(5, 64, 96), fps=10)
    assert (read_video(tmp_path / "film.mp4") == _decode(tmp_path / "film.mp4")).all()
    (tmp_path / "no.mp4").write_text("no film")
    with pytest.raises(OutputError, match=r"no\.mp4: not a video"):
        read_video(tmp_path / "no.mp4")


def test_films_side_by_side_last_as_long_as_the_longest() -> None:
    short, long = moving_square(3, 192, 256), moving_square(5, 192, 256)
    shown = side_by_side([("base", short, False), ("final", long, True)])
    assert (len(shown), shown.shape[2]) == (5, 512)
    assert (shown[:, :192, 256:] == long).all()
    assert (shown[:3, :192, :256] == short).all()
    assert (shown[4, :192, :256] == short[2]).all(), "its last frame stays"
    assert side_by_side([("base", short, False), ("a name of many words " * 4, long, True)]).shape[1] > shown.shape[1]
