"""What is found in a data set, by name, file, episode and frame."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from miniature import IMAGE
from treadle.cli import app
from treadle.config.dataset import CheckConfig
from treadle.config.loading import read_config
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.supervised.dataset_check import Checked, check_dataset

ARMS = Path(__file__).parents[1] / "fixtures" / "lerobot_arms"
DATA = "data/chunk-000/file-000.parquet"


def check(folder: Path, *settings: str, **options) -> Checked:
    return check_dataset(folder, read_config(CheckConfig, None, settings), device="cpu", **options)


def rules(checked: Checked) -> list[tuple[str, bool, int | None, int | None]]:
    return [(f.rule, f.refused, f.episode, f.frame) for f in checked.findings]


@pytest.mark.parametrize("name", ["v3.0", "v2.1", "v3.0-images"])
def test_nothing_is_found_in_a_data_set_as_it_should_be(name: str):
    checked = check(ARMS / name)
    assert (checked.findings, checked.episodes, checked.frames) == ([], 4, 41)
    assert not checked.refused


def flawed(
    folder: Path, lengths: tuple[int, ...] = (40, 41, 42, 300), fps: int = 10, still: tuple[float, float] = (3, 3)
) -> Path:
    """Two dimensions: one moves, and one is always 3. Episode 1 stands still from frame 20 on; episode 2 has a 1000.
    `still`: of the second dimension, in every other frame, and in the others.
    """
    size = {"height": 16, "width": 16}
    with DemonstrationWriter(
        folder, fps=fps, cameras=("front",), action_names=("x", "y"), state_names=("x",), **size
    ) as writer:
        for episode, length in enumerate(lengths):
            x = np.arange(length, dtype=np.float32)
            if episode == 1:
                x[20:] = x[20]
            actions = np.stack([x, np.where(np.arange(length) % 2, *still).astype(np.float32)], 1)
            if episode == 2:
                actions[7, 0] = 1e5
            frames = np.zeros((length, 1, 16, 16, 3), np.uint8)
            writer.add_episode(frames, x[:, None], actions, "go", True, str(episode))
    return folder


def test_odd_things_are_named_with_episode_and_frame(tmp_path: Path):
    checked = check(flawed(tmp_path / "set"))
    found = rules(checked)
    assert ("length", False, 3, None) in found
    assert ("idle", False, 1, 21) in found
    assert ("constant", False, None, None) in found
    assert ("outlier", False, 2, 7) in found
    assert len(found) == 4
    assert not checked.refused
    said = {finding.rule: finding.said for finding in checked.findings}
    assert said["idle"] == "nothing moves for 20 frames (2.0 s)"
    assert said["length"] == "300 frames, where the median is 41.5"
    assert said["constant"] == "'action' dimension 1 is always 3"
    assert said["outlier"].startswith("'action' dimension 0 is 100000; 98 % of it is 1 to 295.78")


def test_rounding_of_what_stands_still_is_nothing_odd(tmp_path: Path):
    folder = flawed(tmp_path / "set", still=(1e-10, 0))
    with_spikes(folder, 5e-9)
    assert [f.said for f in check(folder).findings if "dimension 1" in f.said] == []
    with_spikes(folder, 1.0)
    (said,) = [f.said for f in check(folder).findings if f.rule == "outlier" and "dimension 1" in f.said]
    assert said == "'action' dimension 1 is 1; 98 % of it is 0 to 1e-10"


def with_spikes(folder: Path, value: float) -> None:
    """Change the second dimension of one frame."""
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    actions = table["action"].to_pylist()
    actions[30][1] = value
    column = pa.array(actions, table.schema.field("action").type)
    pq.write_table(table.set_column(table.schema.get_field_index("action"), table.schema.field("action"), column), path)


def test_numbers_outside_of_declared_statistics_are_named(tmp_path: Path):
    folder = shutil.copytree(ARMS / "v3.0", tmp_path / "set")
    stats = json.loads((folder / "meta/stats.json").read_text())
    stats["action"]["max"][2] = 0.1
    del stats["observation.state"]["min"]
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    checked = check(folder)
    assert rules(checked) == [("range", False, 0, 6), ("statistics", False, None, None)]
    said = checked.findings[0].said
    # Joint 2 goes by 0.015 a step: it is above 0.1 from step 7 on, which is frame 6, in 9 of the 41 frames.
    assert said.startswith("'action' dimension 2 is 0.105, and")
    assert checked.findings[0].file == DATA
    stats["action"]["max"] = "high"
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    assert ("statistics", True, None, None) in rules(check(folder))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_refuses_the_data_set(tmp_path: Path, value: float):
    folder = shutil.copytree(ARMS / "v3.0", tmp_path / "set")
    table = pq.read_table(folder / DATA)
    rows = table["action"].to_pylist()
    rows[13][5] = value
    place = table.column_names.index("action")
    pq.write_table(table.set_column(place, "action", pa.array(rows, pa.list_(pa.float32()))), folder / DATA)
    checked = check(folder)
    assert rules(checked) == [("finite", True, 1, 3)]
    assert checked.findings[0].file == DATA
    result = CliRunner().invoke(app, ["data", "check", str(folder), "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 2
    assert f"holds {value} at episode 1, frame 3, dimension 5 of 14" in result.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["refused"]
    assert report["findings"][0] | {"said": ""} == {
        "rule": "finite", "refused": True, "said": "", "file": DATA, "episode": 1, "frame": 3
    }  # fmt: skip


def test_a_file_that_is_missing_or_broken_refuses_it(tmp_path: Path):
    folder = shutil.copytree(ARMS / "v2.1", tmp_path / "set")
    path = folder / "videos/chunk-000/observation.images.wrist/episode_000002.mp4"
    path.write_bytes(path.read_bytes()[:100])
    assert rules(check(folder)) == [("frames", True, 2, 0), ("frames", True, 2, 7)]
    assert rules(check(tmp_path)) == [("structure", True, None, None)]


@pytest.mark.integration
def test_a_policy_of_another_robot_refuses_it(checkpoint: Path):
    checked = check(ARMS / "v3.0", 'cameras=["top"]', policy=checkpoint)
    assert rules(checked) == [("policy", True, None, None)]
    assert "has actions of 14 dimensions, the checkpoint's statistics 'tabletop' 7" in checked.findings[0].said


@pytest.mark.integration
def test_rollouts_are_those_that_the_simulator_plays_again(tmp_path: Path, checkpoint: Path):
    settings = ["simulator.horizon=10", f"simulator.options.image_size={IMAGE}", "simulator.threads=1"]
    folder = tmp_path / "set"
    arguments = [str(checkpoint), *settings, "--episodes", "3", "--output", str(folder), "--device", "cpu"]
    assert CliRunner().invoke(app, ["record", *arguments]).exit_code == 0
    checked = check(folder, *settings, policy=checkpoint, replays=3)
    assert checked.replayed == {"episodes": 3, "successes": 0}
    assert not [finding for finding in checked.findings if finding.rule == "replay"]
    assert checked.open_loop is not None
    assert checked.open_loop["decisions"] == 9
    # Told that it succeeded, or shown other proprioception, an episode is named.
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(table.column_names.index("success"), "success", pa.array([False, True, False])), path
    )
    data = pq.read_table(folder / DATA)
    rows = data["observation.state"].to_pylist()
    rows[24] = [x + 1 for x in rows[24]]
    place = data.column_names.index("observation.state")
    kind = data.schema.field("observation.state").type
    pq.write_table(data.set_column(place, "observation.state", pa.array(rows, kind)), folder / DATA)
    again = check(folder, *settings, replays=3)
    assert [r for r in rules(again) if r[0] == "replay"] == [("replay", False, 1, None), ("replay", False, 2, 4)]


def test_a_data_set_without_scenarios_cannot_be_played_again():
    result = CliRunner().invoke(app, ["data", "check", str(ARMS / "v3.0"), "--replay", "1"])
    assert result.exit_code == 2
    assert "--replay: the data set names no scenarios" in result.stderr


def test_the_command_shows_a_few_of_each_kind(tmp_path: Path):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["data", "check", str(flawed(tmp_path / "set"))])
    assert result.exit_code == 0, result.output
    assert "4 episodes, 423 frames, 4 findings" in result.stdout
    assert "episode 1, frame 21" in result.stdout
