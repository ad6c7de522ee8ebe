"""Datasets as LeRobot's own tools leave them, and broken ones: read right, or refused by file and column."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import action_statistics, dataset_cameras, read_demonstrations
from treadle.errors import ConfigError, OutputError

HEIGHT, WIDTH, LENGTHS = 32, 48, (4, 3, 5)
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
FRONT = "observation.images.front"


def write(directory: Path, cameras: tuple[str, ...] = ("front",)) -> Path:
    """Episode e, frame t: action (e, t), state (t,), and a frame of brightness 40 e + 5 t."""
    with DemonstrationWriter(
        directory, fps=10, cameras=cameras, height=HEIGHT, width=WIDTH, action_names=("x", "y"), state_names=("a",)
    ) as dataset:
        for episode, length in enumerate(LENGTHS):
            steps = np.arange(length)
            shade = (40 * episode + 5 * steps).astype(np.uint8)
            frames = np.broadcast_to(shade[:, None, None, None, None], (length, len(cameras), HEIGHT, WIDTH, 3)).copy()
            for camera in range(len(cameras)):
                frames[:, camera] += np.uint8(100 * camera)
            actions = np.stack([np.full(length, episode), steps], 1).astype(np.float32)
            task = ("lift", "drop", "lift")[episode]
            dataset.add_episode(frames, steps[:, None].astype(np.float32), actions, task, True, f"s{episode}")
    return directory


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "set")


def edit_info(dataset: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = dataset / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def edit_table(dataset: Path, file: str, change: Callable[[Any], Any]) -> None:
    pq.write_table(change(pq.read_table(dataset / file)), dataset / file)


def put(name: str, values: Any) -> Callable[[Any], Any]:
    """A change that puts other values into a column."""
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def shades(frames: np.ndarray) -> list[int]:
    return np.rint(frames.mean((1, 2, 3, 4))).astype(int).tolist()


WANTED = [0, 5, 10, 15, 40, 45, 50, 80, 85, 90, 95, 100]


def near(found: list[int], wanted: list[int]) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) <= 1 for a, b in zip(found, wanted, strict=True))


def test_tasks_as_pandas_writes_an_index_without_a_name(dataset: Path) -> None:
    table = pq.read_table(dataset / "meta/tasks.parquet").rename_columns(["task_index", "__index_level_0__"])
    pq.write_table(table.replace_schema_metadata(None), dataset / "meta/tasks.parquet")
    assert read_demonstrations(dataset).instructions == ["lift"] * 4 + ["drop"] * 3 + ["lift"] * 5


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([3, HEIGHT, WIDTH], ["channels", "height", "width"]),
        ([3, HEIGHT, WIDTH], None),
        ([WIDTH, 3, HEIGHT], ["width", "channel", "height"]),
        ([HEIGHT, WIDTH, 3], ["height", "width", "channel"]),
    ],
)
def test_channels_stand_where_the_names_say(dataset: Path, shape: list[int], names: list[str] | None) -> None:
    edit_info(dataset, lambda info: info["features"][FRONT].update(shape=shape, names=names))
    found = read_demonstrations(dataset)
    assert found.frames.shape == (12, 1, HEIGHT, WIDTH, 3)
    assert near(shades(found.frames), WANTED)


def test_a_deleted_episode_leaves_the_others_with_their_own_frames(dataset: Path) -> None:
    """Numbers, `index` and places in the video stay as they were."""
    for file in (DATA, EPISODES):
        edit_table(dataset, file, lambda table: table.filter(pc.not_equal(table["episode_index"], 1)))  # pyright: ignore[reportAttributeAccessIssue]
    found = read_demonstrations(dataset)
    assert found.actions[:, 0].tolist() == [0] * 4 + [2] * 5
    assert found.episode_index.tolist() == [0] * 4 + [1] * 5
    assert near(shades(found.frames), WANTED[:4] + WANTED[7:])
    assert found.scenarios == ["s0", "s2"]


def test_rows_in_another_order_are_the_same_dataset(dataset: Path) -> None:
    before = read_demonstrations(dataset)
    for file in (DATA, EPISODES):
        edit_table(dataset, file, lambda table: table.take(list(range(len(table)))[::-1]))
    after = read_demonstrations(dataset)
    assert np.array_equal(before.actions, after.actions)
    assert np.array_equal(before.frames, after.frames)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64()])
@pytest.mark.parametrize("fixed", [True, False])
def test_lists_of_any_numbers(dataset: Path, kind: Any, fixed: bool) -> None:
    rows = pq.read_table(dataset / DATA)["action"].to_pylist()
    values = pa.array([[int(x) for x in row] for row in rows], pa.list_(kind, 2) if fixed else pa.list_(kind))
    edit_table(dataset, DATA, put("action", values))
    found = read_demonstrations(dataset)
    assert found.actions.tolist() == rows
    assert found.actions.dtype == np.float32


def test_cameras_are_read_in_the_order_that_is_wanted(tmp_path: Path) -> None:
    dataset = write(tmp_path / "set", ("front", "wrist"))
    assert dataset_cameras(dataset) == ("front", "wrist")
    found = read_demonstrations(dataset, ["wrist", "front"])
    assert found.cameras == ("wrist", "front")
    assert near(shades(found.frames[:, :1]), [shade + 100 for shade in WANTED])
    assert near(shades(found.frames[:, 1:]), WANTED)
    assert read_demonstrations(dataset, ["wrist"]).frames.shape[1] == 1
    with pytest.raises(ConfigError, match="has no camera 'top'; it has front, wrist"):
        read_demonstrations(dataset, ["top"])


def ragged(table: Any) -> Any:
    """As many numbers in all as there should be: 1 in the first row, 3 in the second."""
    rows = table["action"].to_pylist()
    rows[0], rows[1] = rows[0][:1], rows[1] + [7.0]
    return put("action", pa.array(rows, pa.list_(pa.float32())))(table)


def with_value(row: int, value: float | None) -> Callable[[Any], Any]:
    def change(table: Any) -> Any:
        rows = table["action"].to_pylist()
        rows[row][1] = value
        return put("action", pa.array(rows, pa.list_(pa.float64())))(table)

    return change


def nulls(table: Any) -> Any:
    rows = table["action"].to_pylist()
    rows[2] = None
    return put("action", pa.array(rows, pa.list_(pa.float32())))(table)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        (DATA, ragged, r"file-000\.parquet: column 'action' has 1 numbers in row 0, and meta/info\.json declares 2"),
        (DATA, nulls, r"file-000\.parquet: column 'action' has no value in row 2"),
        (DATA, with_value(5, None), r"column 'action' has an empty place in row 5"),
        (DATA, with_value(5, np.nan), r"column 'action' holds nan at episode 1, frame 1, dimension 1 of 2"),
        (DATA, with_value(5, np.inf), r"column 'action' holds inf at episode 1, frame 1"),
        (DATA, with_value(5, 1e39), r"column 'action' holds inf at episode 1, frame 1"),
        (DATA, put("action", pa.array([[[1.0, 2.0]]] * 12)), r"column 'action' holds list<.*lists of 2 numbers"),
        (DATA, put("action", pa.array([["a", "b"]] * 12)), r"column 'action' holds string, not numbers"),
        (DATA, put("observation.state", pa.array([np.nan] * 12)), r"'observation.state' holds nan at episode 0, fr"),
        (DATA, put("task_index", pa.array([7] * 12)), r"file-000.parquet: column 'task_index' holds 7, and meta/tasks"),
        (DATA, put("frame_index", pa.array([0.5] * 12)), r"column 'frame_index' does not hold whole numbers"),
        (DATA, put("timestamp", pa.array([0.0] * 12)), r"'timestamp' is 0 at episode 0, frame 1, and 0.1 by fps 10"),
        (DATA, lambda table: table.drop_columns(["action"]), r"file-000.parquet has no column 'action'; it has"),
        (DATA, lambda table: table.drop_columns(["task_index"]), r"has no column 'task_index'"),
        (DATA, lambda table: table.slice(1), r"hold 3 frames of episode 0, column 'length' of meta/episodes says 4"),
        (EPISODES, lambda table: table.slice(1), r"hold 4 frames of episode 0, column 'length' of meta/epi.* says 0"),
        (EPISODES, lambda table: table.slice(0, 0), r"meta/episodes has no episode"),
        (EPISODES, lambda table: table.drop_columns(["length"]), r"has no column 'length'"),
        (EPISODES, put("episode_index", pa.array([0, 1, 1])), r"'episode_index' of meta/episodes holds 1 twice"),
        (EPISODES, put("success", pa.array(["yes"] * 3)), r"column 'success' of meta/episodes holds 'yes', not bool"),
        (
            EPISODES,
            lambda table: table.drop_columns([f"videos/{FRONT}/from_timestamp"]),
            r"has no column 'videos/observation.images.front/from_timestamp'",
        ),
        ("meta/tasks.parquet", lambda table: table.drop_columns(["task"]), r"tasks.parquet has no column 'task'; it h"),
        ("meta/tasks.parquet", put("task", pa.array([1, 2])), r"column 'task' holds 1, which is no text"),
    ],
)
def test_a_table_that_cannot_be_read_right_is_refused(
    dataset: Path, file: str, change: Callable[[Any], Any], said: str
) -> None:
    edit_table(dataset, file, change)
    with pytest.raises(ConfigError, match=said):
        read_demonstrations(dataset)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": None}, "features is no table of features"),
        ({"features": {"action": None}}, "features is no table of features"),
        ({"features": {}}, "no feature 'action'"),
        ({"video_path": None}, "video_path is None; it must be a text such as"),
        ({"video_path": "{other}.mp4"}, "video_path '{other}.mp4' cannot be filled in"),
        ({"fps": None}, "fps is None; it must be a whole number"),
        ({"fps": 12.5}, "fps is 12.5"),
        ({"fps": 20}, "'timestamp' is 0.1 at episode 0, frame 1, and 0.05 by fps 20"),
    ],
)
def test_a_declaration_that_cannot_be_used_is_refused(dataset: Path, change: dict[str, Any], said: str) -> None:
    edit_info(dataset, lambda info: info.update(change))
    with pytest.raises(ConfigError, match=said):
        read_demonstrations(dataset)


@pytest.mark.parametrize(
    ("feature", "change", "said"),
    [
        ("action", {"shape": None}, r"features\['action'\] has shape None"),
        ("action", {"shape": [2, 7]}, r"features\['action'\] has shape \[2, 7\]; Treadle reads vectors"),
        ("action", {"shape": [3]}, r"column 'action' has 2 numbers in row 0, and meta/info.json declares 3"),
        (FRONT, {"shape": [32, 48, 1]}, r"shape \[32, 48, 1\] .* Treadle reads frames of colour"),
        (FRONT, {"shape": [48, 32, 3]}, r"mp4: frames are \[32, 48, 3\], meta/info.json declares \[48, 32, 3\]"),
        (FRONT, {"dtype": "image"}, r"file-000.parquet has no column 'observation.images.front'"),
    ],
)
def test_a_feature_that_does_not_fit_its_file_is_refused(
    dataset: Path, feature: str, change: dict[str, Any], said: str
) -> None:
    edit_info(dataset, lambda info: info["features"][feature].update(change))
    with pytest.raises(ConfigError, match=said):
        read_demonstrations(dataset)


def test_a_video_of_another_rate_is_refused(dataset: Path) -> None:
    """Read by position, its frames would be those of other actions."""
    edit_info(dataset, lambda info: info.update(fps=30))
    edit_table(dataset, DATA, lambda table: put("timestamp", pc.divide(table["timestamp"], 3.0))(table))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match=r"file-000.mp4 has 10 frames a second, meta/info.json declares fps 30"):
        read_demonstrations(dataset)


def test_numbers_that_are_not_finite_are_neither_written_nor_made_statistics_of(tmp_path: Path) -> None:
    actions = np.array([[1, 2], [3, np.nan]], np.float32)
    with pytest.raises(ValueError, match=r"actions\[1, 1\] is nan; statistics need finite numbers"):
        action_statistics(actions)
    options = {"cameras": ("front",), "height": 32, "width": 32, "action_names": ("x", "y")}
    dataset = DemonstrationWriter(tmp_path / "set", fps=10, **options)
    frames = np.zeros((2, 1, 32, 32, 3), np.uint8)
    with pytest.raises(OutputError, match=r"actions\[1, 1\] is nan"):
        dataset.add_episode(frames, np.zeros((2, 0), np.float32), actions, "go", True, "0")
