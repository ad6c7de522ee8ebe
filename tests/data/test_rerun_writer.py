"""Episodes for Rerun's viewer, read back by its own reader. The package is an extra of 170 MB, so tests skip it."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from treadle.data.rerun_writer import RerunWriter
from treadle.errors import ConfigError


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(ConfigError, match=r"--rerun needs the package 'rerun'.*pip install 'treadle\[rerun\]'"):
        RerunWriter(tmp_path / "episodes", ["front"], ["x"], 10)
    assert list(tmp_path.iterdir()) == []


def test_an_episode_is_read_back(tmp_path: Path):
    pytest.importorskip("rerun.chunk", reason="pip install 'treadle[rerun]', of 0.41 or later")
    rng = np.random.default_rng(0)
    frames = (
        rng.integers(0, 40, (3, 2, 8, 8, 3), dtype=np.uint8)
        + np.arange(3, dtype=np.uint8)[:, None, None, None, None] * 80
    )
    state, actions = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)
    rewards = np.array([0, 0.25, 1], np.float32)
    writer = RerunWriter(tmp_path, ["front", "wrist"], ["x", "gripper"], 10)
    path = writer.add_episode(frames, state, actions, rewards, "lift the cube", True, "vision/light 3:7")
    assert path.name == "00000-vision-light-3-7.rrd"
    assert writer.add_episode(frames, state, actions, rewards, "again", False, "b").name == "00001-b.rrd"
    found = columns(path)
    assert np.allclose(found["/action", "Scalars:scalars"], actions)
    assert np.allclose(found["/proprioception", "Scalars:scalars"], state)
    assert found["/reward", "Scalars:scalars"] == [[0], [0.25], [1]]
    assert found["/action", "SeriesLines:names"] == [["x", "gripper"]]
    ((text,),) = found["/instruction", "TextDocument:text"]
    assert text == "lift the cube\n\nsuccess, 3 control steps, vision/light 3:7"
    assert found["/camera/wrist", "control step"] == [0, 1, 2]
    pictures = [Image.open(BytesIO(bytes(blob))) for (blob,) in found["/camera/front", "EncodedImage:blob"]]
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    # JPEG keeps the mean of a picture, and these have means that tell them apart.
    means = np.array([np.asarray(picture).mean() for picture in pictures])
    assert np.abs(means - frames[:, 0].mean((1, 2, 3))).max() < 2


def columns(path: Path) -> dict[tuple[str, str], list]:
    """The columns of a file by entity and name, as Rerun's own reader has them."""
    from rerun.chunk import RrdReader

    found: dict[tuple[str, str], list] = {}
    for chunk in RrdReader(path).store().stream().to_chunks():
        batch = chunk.to_record_batch()
        found |= {
            (chunk.entity_path, name): batch[name].to_pylist() for name in batch.schema.names if "time" not in name
        }
    return found
