"""A run's folder belongs to one configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treadle.config.loading import read_config
from treadle.config.placement import PlacementConfig
from treadle.config.run_directory import LOCK, create_run_directory, lock_run_directory
from treadle.config.schema import TrainConfig
from treadle.errors import ConfigError, OutputError


def test_a_new_folder_holds_the_configuration(tmp_path):
    config = TrainConfig(name="a", output=tmp_path / "deep" / "runs")
    directory = create_run_directory(config)
    assert directory == tmp_path / "deep" / "runs" / "a"
    assert read_config(TrainConfig, directory / "config.json") == config
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_the_same_configuration_resumes_also_from_elsewhere(tmp_path, monkeypatch):
    create_run_directory(TrainConfig(name="a", output=tmp_path))
    (tmp_path / "a" / "metrics.jsonl").write_text("kept")
    monkeypatch.chdir(tmp_path)
    create_run_directory(TrainConfig(name="a", output="."))  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == "kept"


def test_another_run_is_named_by_what_differs_and_left_alone(tmp_path):
    create_run_directory(TrainConfig(name="a", output=tmp_path))
    before = (tmp_path / "a" / "config.json").read_text()
    with pytest.raises(OutputError, match=r"seed is 0 there and 1 here.*name=\.\.\., or resume"):
        create_run_directory(TrainConfig(name="a", output=tmp_path, seed=1))
    assert (tmp_path / "a" / "config.json").read_text() == before


def test_a_configuration_of_another_version_is_another_run(tmp_path):
    directory = create_run_directory(TrainConfig(name="a", output=tmp_path))
    content = json.loads((directory / "config.json").read_text())
    content["gone"] = 1
    del content["seed"]
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(OutputError, match="seed is absent there and 0 here; gone is 1 there and absent here"):
        create_run_directory(TrainConfig(name="a", output=tmp_path))


def test_a_folder_of_other_things_is_not_taken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"holds other files and no config\.json"):
        create_run_directory(TrainConfig(name="a", output=tmp_path))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.tex"]


def test_a_broken_configuration_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(OutputError, match="not valid JSON"):
        create_run_directory(TrainConfig(name="a", output=tmp_path))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the run folder .*output=\.\.\."):
        create_run_directory(TrainConfig(name="a", output=tmp_path / "runs"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_name_is_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="name: found"):
        create_run_directory(TrainConfig(name=name, output=tmp_path))


def test_a_folder_has_one_run_at_a_time(tmp_path: Path):
    """Another process has it, as the lock is of a process; it is given back when that is killed."""
    code = (
        "import sys; from treadle.config.run_directory import *\n"
        "with lock_run_directory(Path(sys.argv[1])): print('has it', flush=True); sys.stdin.read()"
    )
    directory = create_run_directory(TrainConfig(name="a", output=tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with (
            pytest.raises(OutputError, match=rf"'{directory}' is in use by process {other.pid} on .*, since 20"),
            lock_run_directory(directory),
        ):
            pass
        other.kill()
    with lock_run_directory(directory):
        assert str(os.getpid()) in (directory / LOCK).read_text()
    assert (directory / LOCK).read_text() == ""
    create_run_directory(TrainConfig(name="a", output=tmp_path))


def test_a_run_may_move_to_other_devices(tmp_path: Path):
    directory = create_run_directory(TrainConfig(name="a", output=tmp_path))
    moved = TrainConfig(name="a", output=tmp_path, placement=PlacementConfig(players=2, ranks=3))
    assert create_run_directory(moved) == directory
    assert json.loads((directory / "config.json").read_text())["placement"]["ranks"] == 3
