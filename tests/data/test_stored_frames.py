"""Frames that stay in their files, and data sets that LeRobot's own writer made."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import open_demonstrations, read_demonstrations
from treadle.data.lerobot_info import Columns
from treadle.data.stored_frames import StoredFrames
from treadle.errors import ConfigError

ARMS = Path(__file__).parents[1] / "fixtures" / "lerobot_arms"
LENGTHS = (10, 12, 8, 11)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FORMATS = ("v3.0", "v2.1", "v3.0-images")


def wanted_actions() -> np.ndarray:
    """As `make.py` of the fixture has them."""
    rows = [
        (1 - 2 * (episode % 2)) * 0.05 * (1 + np.arange(14)) * (step + 1) / 10
        for episode, length in enumerate(LENGTHS)
        for step in range(length)
    ]
    return np.array(rows, np.float32)


def wanted_picture(episode: int, step: int, camera: int) -> np.ndarray:
    frame = np.full((64, 64, 3), 40 + 60 * camera, np.uint8)
    frame[: 4 * (step + 1), 16:48] = (60, 60, 220) if episode % 2 else (220, 60, 60)
    return frame


@pytest.mark.parametrize("name", FORMATS)
def test_what_lerobots_writer_wrote_is_read(name: str):
    found = read_demonstrations(ARMS / name)
    assert found.cameras == ("top", "wrist")
    assert found.fps == 10
    assert found.actions == pytest.approx(wanted_actions(), abs=1e-6)
    assert found.episode_index.tolist() == [e for e, length in enumerate(LENGTHS) for _ in range(length)]
    assert [found.instructions[row] for row in (0, 10, 22, 30)] == ["raise both arms", "lower both arms"] * 2
    # Frame for frame what LeRobot's own reader shows; neighbours differ by more.
    expected = np.array(json.loads((ARMS / "expected.json").read_text())[name])
    assert found.frames.mean((2, 3, 4)) == pytest.approx(expected, abs=0.3)
    if name.endswith("images"):
        assert np.array_equal(found.frames[23, 1], wanted_picture(2, 1, 1))


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_the_same_in_any_order(name: str):
    whole = read_demonstrations(ARMS / name).frames
    frames = open_demonstrations(ARMS / name).frames
    assert isinstance(frames, StoredFrames)
    assert (len(frames), frames.nbytes) == (len(whole), whole.nbytes)
    rows = np.random.default_rng(0).permutation(len(whole))
    for part in np.array_split(rows, 5):
        assert np.array_equal(frames[part], whole[part])
    assert np.array_equal(frames[[40, 3, 3, 40]], whole[[40, 3, 3, 40]])
    assert np.array_equal(frames[5:9], whole[5:9])
    frames.close()
    assert np.array_equal(frames[-1:], whole[-1:])


def test_cameras_and_columns_are_chosen(tmp_path: Path):
    found = read_demonstrations(ARMS / "v2.1", ["wrist"], Columns(action="observation.state"))
    assert found.cameras == ("wrist",)
    assert np.array_equal(found.frames, read_demonstrations(ARMS / "v2.1").frames[:, 1:])
    assert found.actions == pytest.approx(read_demonstrations(ARMS / "v2.1").state)
    assert read_demonstrations(ARMS / "v3.0", ["top"], Columns(state="action")).state == pytest.approx(wanted_actions())
    with pytest.raises(ConfigError, match=r"no feature 'joints' among .*; name the column .* by columns.state"):
        open_demonstrations(ARMS / "v3.0", None, Columns(state="joints"))
    with pytest.raises(ConfigError, match=r"no feature 'actions' among .* another name \(columns.action\)"):
        open_demonstrations(ARMS / "v3.0", None, Columns(action="actions"))


def test_cameras_of_several_sizes_are_apart(tmp_path: Path):
    """Two data sets of one camera each, put together."""
    for name, side in (("small", 32), ("large", 48)):
        size = {"height": side, "width": side + 16}
        with DemonstrationWriter(tmp_path / name, fps=10, cameras=(name,), action_names=("x",), **size) as writer:
            frames = np.full((3, 1, side, side + 16, 3), side, np.uint8)
            writer.add_episode(frames, np.zeros((3, 0), np.float32), np.zeros((3, 1), np.float32), "go", True, "0")
    folder, key = tmp_path / "small", "observation.images.large"
    shutil.copytree(tmp_path / "large/videos" / key, folder / "videos" / key)
    info, other = (json.loads((tmp_path / name / "meta/info.json").read_text()) for name in ("small", "large"))
    info["features"][key] = other["features"][key]
    (folder / "meta/info.json").write_text(json.dumps(info))
    table, added = (pq.read_table(tmp_path / name / EPISODES) for name in ("small", "large"))
    for name in added.column_names:
        if name.startswith(f"videos/{key}"):
            table = table.append_column(name, added[name])
    pq.write_table(table, folder / EPISODES)
    found = open_demonstrations(folder)
    assert found.sizes == [(32, 48), (48, 64)]
    small, large = found.frames[np.array([2, 0])]
    assert (small.shape, large.shape) == ((2, 32, 48, 3), (2, 48, 64, 3))
    assert (small.mean(), large.mean()) == pytest.approx((32, 48), abs=1)
    with pytest.raises(ConfigError, match=r"cameras of several sizes, small \[32, 48\], large \[48, 64\]; choose"):
        read_demonstrations(folder)
    assert read_demonstrations(folder, ["large"]).frames.shape == (3, 1, 48, 64, 3)


def test_the_first_episodes_are_a_data_set_of_their_own():
    found = open_demonstrations(ARMS / "v3.0")
    head = found.head(22)
    assert len(head.actions) == len(head.frames) == len(head.instructions) == 22
    assert np.array_equal(head.frames[20:22], found.frames[20:22])
    assert found.head(41) is found


def test_many_files_are_not_all_kept_open(tmp_path: Path):
    """A file an episode, more than are kept open; the last one is closed when another is asked for."""
    size = {"height": 32, "width": 32}
    with DemonstrationWriter(
        tmp_path / "set", fps=10, cameras=("front",), action_names=("x",), video_file_mb=0, **size
    ) as writer:
        for episode in range(40):
            frames = np.full((2, 1, 32, 32, 3), 6 * episode, np.uint8)
            writer.add_episode(frames, np.zeros((2, 0), np.float32), np.zeros((2, 1), np.float32), "go", True, "0")
    frames = open_demonstrations(tmp_path / "set").frames
    assert isinstance(frames, StoredFrames)
    shades = frames[np.arange(79, -1, -1)].mean((1, 2, 3, 4))
    assert shades == pytest.approx(6 * (np.arange(79, -1, -1) // 2), abs=2)
    assert sum(len(opened) for opened in frames._opened) == 16


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("meta/tasks.jsonl", "meta/tasks.jsonl is missing; the dataset is incomplete"),
        ("meta/episodes.jsonl", "meta/episodes.jsonl is missing"),
        ("data/chunk-000/episode_000001.parquet", "data files hold 0 frames of episode 1, column 'length' .* says 12"),
        ("videos/chunk-000/observation.images.top/episode_000002.mp4", "episode_000002.mp4 is missing"),
    ],
)
def test_a_missing_file_of_the_older_format_is_named(tmp_path: Path, file: str, said: str):
    folder = shutil.copytree(ARMS / "v2.1", tmp_path / "set")
    (folder / file).unlink()
    with pytest.raises(ConfigError, match=said):
        read_demonstrations(folder)


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        (
            "meta/tasks.jsonl",
            '{"task_index": "0", "task": "go"}',
            r"tasks.jsonl: line 1: found .*; allowed: task_index",
        ),
        ("meta/tasks.jsonl", "[1]", r"tasks.jsonl: line 1: found \[1\]; allowed: a table of keys"),
        ("meta/tasks.jsonl", "{", r"tasks.jsonl: line 1: not valid JSON"),
        ("meta/episodes.jsonl", '{"episode_index": 0}', r"episodes.jsonl: line 1: .*allowed: episode_index and length"),
        ("meta/episodes.jsonl", '{"episode_index": 0, "length": 0}', r"column 'length' is 0 in row 1"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, file: str, line: str, said: str):
    folder = shutil.copytree(ARMS / "v2.1", tmp_path / "set")
    path = folder / file
    path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))
    with pytest.raises(ConfigError, match=said):
        read_demonstrations(folder)


def test_a_picture_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path):
    folder = shutil.copytree(ARMS / "v3.0-images", tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    for camera in ("top", "wrist"):
        info["features"][f"observation.images.{camera}"]["shape"] = [32, 32, 3]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError, match=r"row 0: the picture is \[64, 64\], meta/info.json declares \[32, 32\]"):
        read_demonstrations(folder)
