"""Datasets written, read, and looked at from outside."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import action_statistics, read_demonstrations
from treadle.errors import ConfigError, OutputError

FPS, SIZE = 10, 32
LENGTHS = (7, 4, 9)
INSTRUCTIONS = ("lift the red cube", "open the drawer", "lift the red cube")


def scene(length: int, seed: int) -> np.ndarray:
    """Frames of two cameras: a coloured square that moves over a gradient; no two frames are alike."""
    frames = np.zeros((length, 2, SIZE, SIZE, 3), np.uint8)
    frames[..., 0] = np.linspace(0, 255, SIZE).astype(np.uint8)
    for step in range(length):
        for camera in range(2):
            left = (3 * step + 5 * seed) % (SIZE - 8)
            frames[step, camera, left : left + 8, 4 + camera : 12, :] = (20 * step, 255 - 60 * seed, 120 + 90 * camera)
    return frames


def episodes() -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [
        {
            "frames": scene(length, seed),
            "state": generator.normal(size=(length, 3)).astype(np.float32),
            "actions": generator.normal(size=(length, 2)).astype(np.float32),
            "instruction": instruction,
            "success": seed != 1,
            "scenario": f"tabletop/train/train/{seed:06d}",
        }
        for seed, (length, instruction) in enumerate(zip(LENGTHS, INSTRUCTIONS, strict=True))
    ]


def writer(directory: Path, **changes: Any) -> DemonstrationWriter:
    options = {
        "fps": 1 / (0.002 * 50),
        "cameras": ("front", "wrist"),
        "height": SIZE,
        "width": SIZE,
        "action_names": ("x", "y"),
        "state_names": ("a", "b", "c"),
    }
    return DemonstrationWriter(directory, **{**options, **changes})


def write(directory: Path, **changes: Any) -> Path:
    with writer(directory, **changes) as dataset:
        for episode in episodes():
            dataset.add_episode(**episode)
    return directory


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "set")


def test_what_was_written_is_read(dataset: Path) -> None:
    found = read_demonstrations(dataset)
    wanted = {key: np.concatenate([episode[key] for episode in episodes()]) for key in ("frames", "state", "actions")}
    assert np.array_equal(found.state, wanted["state"])
    assert np.array_equal(found.actions, wanted["actions"])
    assert found.actions.dtype == np.float32
    error = np.abs(found.frames.astype(int) - wanted["frames"].astype(int))
    assert error.mean() < 2
    # Each frame is nearer to itself than to any other: none is shifted.
    distance = np.abs(found.frames[:, None].astype(int) - wanted["frames"][None].astype(int)).mean((2, 3, 4, 5))
    assert distance.argmin(1).tolist() == list(range(sum(LENGTHS)))


def test_rows_know_their_episode_and_instruction(dataset: Path) -> None:
    found = read_demonstrations(dataset)
    assert found.episode_index.tolist() == [0] * 7 + [1] * 4 + [2] * 9
    assert found.frame_index.tolist() == [*range(7), *range(4), *range(9)]
    assert found.instructions == [INSTRUCTIONS[episode] for episode in found.episode_index]
    assert found.success is not None
    assert found.success.tolist() == [True, False, True]
    assert found.scenarios == [f"tabletop/train/train/{i:06d}" for i in range(3)]
    assert (found.cameras, found.fps) == (("front", "wrist"), FPS)


def test_layout(dataset: Path) -> None:
    files = sorted(str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file())
    assert files == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.front/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ]


def test_info(dataset: Path) -> None:
    info = json.loads((dataset / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {
        "codebase_version": "v3.0",
        "robot_type": "unknown",
        "fps": 10,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "total_episodes": 3,
        "total_frames": 20,
        "total_tasks": 2,
        "splits": {"train": "0:3"},
    }
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    assert features["observation.state"]["shape"] == [3]
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}
    front = features["observation.images.front"]
    assert (front["dtype"], front["shape"], front["names"]) == ("video", [32, 32, 3], ["height", "width", "channels"])


def test_declared_video_is_the_file(dataset: Path) -> None:
    info = json.loads((dataset / "meta/info.json").read_text())["features"]["observation.images.front"]["info"]
    with av.open(str(dataset / "videos/observation.images.front/chunk-000/file-000.mp4")) as container:
        stream = container.streams.video[0]
        assert info["video.codec"] == stream.codec.canonical_name
        assert info["video.pix_fmt"] == stream.pix_fmt
        assert (info["video.fps"], info["video.height"]) == (stream.base_rate, stream.height)
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
    assert times == pytest.approx([i / FPS for i in range(20)], abs=1e-6)  # LeRobot looks frames up by time, to 1e-4


def test_episode_metadata(dataset: Path) -> None:
    rows = pq.read_table(dataset / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    row = rows[1]
    wanted = {
        "episode_index": 1,
        "tasks": ["open the drawer"],
        "length": 4,
        "dataset_from_index": 7,
        "dataset_to_index": 11,
        "data/chunk_index": 0,
        "data/file_index": 0,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
        "videos/observation.images.wrist/chunk_index": 0,
        "videos/observation.images.wrist/file_index": 0,
        "videos/observation.images.wrist/from_timestamp": 0.7,
        "videos/observation.images.wrist/to_timestamp": 1.1,
        "success": False,
    }
    assert {key: row[key] for key in wanted} == wanted
    actions = episodes()[1]["actions"]
    assert row["stats/action/max"] == pytest.approx(actions.max(0).tolist())
    assert row["stats/action/count"] == [4]


def test_tasks_carry_the_index_that_pandas_restores(dataset: Path) -> None:
    table = pq.read_table(dataset / "meta/tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["lift the red cube", "open the drawer"]}
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_stats_are_those_of_all_frames(dataset: Path) -> None:
    stats = json.loads((dataset / "meta/stats.json").read_text())
    actions = np.concatenate([episode["actions"] for episode in episodes()]).astype(np.float64)
    assert stats["action"]["mean"] == pytest.approx(actions.mean(0))
    assert stats["action"]["q99"] == pytest.approx(np.quantile(actions, 0.99, axis=0))
    pixels = np.concatenate([episode["frames"][:, 1] for episode in episodes()]) / 255
    wrist = stats["observation.images.wrist"]
    for name, reduce in {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std}.items():
        assert np.array(wrist[name]).shape == (3, 1, 1)
        assert np.ravel(wrist[name]) == pytest.approx(reduce(pixels, axis=(0, 1, 2)))
    assert np.ravel(wrist["q50"]) == pytest.approx(np.quantile(pixels, 0.5, (0, 1, 2), method="inverted_cdf"))
    assert wrist["count"] == stats["timestamp"]["count"] == [20]


def test_large_datasets_roll_over_to_further_files(tmp_path: Path) -> None:
    names, generator = [f"s{i}" for i in range(40_000)], np.random.default_rng(0)
    frames = generator.integers(0, 256, (16, 1, 128, 128, 3), np.uint8)  # noise: little is lost
    options = {"cameras": ("front",), "height": 128, "width": 128, "action_names": names, "state_names": ()}
    with writer(tmp_path / "set", **options, data_file_mb=1, video_file_mb=0) as dataset:
        for i in range(3):
            dataset.add_episode(
                (frames + i).astype(np.uint8),
                np.zeros((16, 0), np.float32),
                np.full((16, 40_000), i, np.float32),
                instruction="go",
                success=True,
                scenario=str(i),
            )
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["data/file_index"] for row in rows] == [0, 1, 2]
    assert [row["videos/observation.images.front/file_index"] for row in rows] == [0, 1, 2]
    found = read_demonstrations(tmp_path / "set")
    wanted = np.concatenate([(frames + i).astype(np.uint8) for i in range(3)])
    assert np.abs(found.frames.astype(int) - wanted).mean() < 20
    assert found.actions[:, 0].tolist() == [0] * 16 + [1] * 16 + [2] * 16
    assert found.state.shape == (48, 0)


def test_an_episode_that_does_not_fit_leaves_the_dataset_whole(tmp_path: Path) -> None:
    first, second, _ = episodes()
    with writer(tmp_path / "set") as dataset:
        dataset.add_episode(**first)
        with pytest.raises(OutputError, match=r"state has shape \(4, 2\), the dataset wants \(4, 3\)"):
            dataset.add_episode(**{**second, "state": second["state"][:, :2]})
        with pytest.raises(OutputError, match="frames must be uint8, found float64"):
            dataset.add_episode(**{**second, "frames": second["frames"] / 255})
        with pytest.raises(OutputError, match="without a frame"):
            dataset.add_episode(**{**second, "actions": second["actions"][:0]})
    assert len(read_demonstrations(tmp_path / "set").actions) == 7
    with pytest.raises(OutputError, match="closed"):
        dataset.add_episode(**second)


def test_what_cannot_be_written_is_refused(tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder"):
        writer(tmp_path)
    with pytest.raises(OutputError, match="not an empty folder"):
        writer(dataset)
    with pytest.raises(OutputError, match=r"fps is 12\.5"):
        writer(tmp_path / "empty", fps=12.5)
    with pytest.raises(OutputError, match="no episode was added"):
        writer(tmp_path / "empty").close()


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no LeRobot dataset: it has no meta/info\.json"):
        read_demonstrations(tmp_path)


def test_another_version(tmp_path: Path) -> None:
    path = write(tmp_path / "set") / "meta/info.json"
    path.write_text(path.read_text().replace('"v3.0"', '"v1.6"'))
    with pytest.raises(
        ConfigError, match=r"codebase_version is 'v1\.6', Treadle reads v2\.0, v2\.1, v3\.0; LeRobot's conv"
    ):
        read_demonstrations(tmp_path / "set")


@pytest.mark.parametrize(
    "file",
    [
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ],
)
def test_a_missing_or_broken_file_is_named(tmp_path: Path, file: str) -> None:
    path = write(tmp_path / "set") / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError, match="set/"):
        read_demonstrations(tmp_path / "set")
    path.unlink()
    with pytest.raises(ConfigError, match="is missing; the dataset is incomplete"):
        read_demonstrations(tmp_path / "set")


def test_action_statistics() -> None:
    actions = np.stack([np.arange(101), np.full(101, 3.0)], axis=1).astype(np.float32)
    found = action_statistics(actions, mask=[True, False])
    assert found["q01"] == [1, 3]
    assert found["q99"] == [99, 3]
    assert (found["min"], found["max"], found["mean"]) == ([0, 3], [100, 3], [50, 3])
    assert found["std"] == pytest.approx([((101**2 - 1) / 12) ** 0.5, 0])  # of 0 .. n - 1: sqrt((n^2 - 1) / 12)
    assert found["mask"] == [True, False]
    assert action_statistics(actions)["mask"] == [True, True]
    json.dumps(found)
    with pytest.raises(ValueError, match="mask has 1 flags, actions 2 dimensions"):
        action_statistics(actions, mask=[True])
    with pytest.raises(ValueError, match="N > 0"):
        action_statistics(actions[:0])
