"""A run's folder belongs to one configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from treadle.config.loading import read_config
from treadle.config.on_policy import PPOConfig
from treadle.config.placement import PlacementConfig
from treadle.config.run_directory import LOCK, claim_run_directory, hold_run_directory
from treadle.config.schema import CollectionConfig, EvaluationConfig, OptimizerConfig, TrainConfig
from treadle.errors import ConfigError, OutputError


def take(config: TrainConfig, *, done: bool = True) -> Path:
    """The folder of a run that has begun, and has had an iteration where it is `done`."""
    with hold_run_directory(config, print) as directory:
        claim_run_directory(directory, config)
        if done:
            (directory / "metrics.jsonl").write_text("{}")
    return directory


def test_a_new_folder_holds_the_configuration(tmp_path):
    config = TrainConfig(name="a", output=tmp_path / "deep" / "runs")
    directory = take(config, done=False)
    assert directory == tmp_path / "deep" / "runs" / "a"
    assert read_config(TrainConfig, directory / "config.json") == config
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_the_same_configuration_resumes_also_from_elsewhere(tmp_path, monkeypatch):
    take(TrainConfig(name="a", output=tmp_path))
    (tmp_path / "a" / "metrics.jsonl").write_text("kept")
    monkeypatch.chdir(tmp_path)
    take(TrainConfig(name="a", output="."), done=False)  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == "kept"


def test_another_run_is_named_by_what_differs_and_left_alone(tmp_path):
    take(TrainConfig(name="a", output=tmp_path))
    before = (tmp_path / "a" / "config.json").read_text()
    with pytest.raises(OutputError, match=r"seed is 0 there and 1 here.*name=\.\.\., or resume"):
        take(TrainConfig(name="a", output=tmp_path, seed=1))
    assert (tmp_path / "a" / "config.json").read_text() == before


def test_a_configuration_of_another_version_is_another_run(tmp_path):
    directory = take(TrainConfig(name="a", output=tmp_path))
    content = json.loads((directory / "config.json").read_text())
    content["gone"] = 1
    del content["seed"]
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(OutputError, match="seed is absent there and 0 here; gone is 1 there and absent here"):
        take(TrainConfig(name="a", output=tmp_path))


def test_a_folder_of_other_things_is_not_taken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match=r"holds other files and no config\.json"):
        take(TrainConfig(name="a", output=tmp_path))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.tex"]


def test_a_broken_configuration_is_said(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(OutputError, match="not valid JSON"):
        take(TrainConfig(name="a", output=tmp_path))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OutputError, match=r"cannot write the run folder .*output=\.\.\."):
        take(TrainConfig(name="a", output=tmp_path / "runs"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_name_is_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="name: found"):
        take(TrainConfig(name=name, output=tmp_path))


def test_a_folder_has_one_run_at_a_time(tmp_path: Path):
    """Another process has it, as the lock is of a process; it is given back when that is killed, and that is said."""
    code = (
        "import sys; from treadle.config.schema import TrainConfig; from treadle.config.run_directory import *\n"
        "with hold_run_directory(TrainConfig(name='a', output=sys.argv[1], seed=int(sys.argv[2])), print):\n"
        "    print('has it', flush=True); sys.stdin.read()"
    ).replace("output=sys.argv[1]", "output=Path(sys.argv[1])")
    config = TrainConfig(name="a", output=tmp_path)
    directory = take(config)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        with (
            pytest.raises(OutputError, match=rf"'{directory}' is in use by process {other.pid} on .*, since 20"),
            hold_run_directory(config, print),
        ):
            pass
        other.kill()
    said: list[str] = []
    with hold_run_directory(config, said.append):
        assert str(os.getpid()) in (directory / LOCK).read_text()
    assert len(said) == 1
    assert f"was in use by process {other.pid} on" in said[0]
    assert "was killed" in said[0]
    assert not (directory / LOCK).exists()
    take(config)


def test_what_is_refused_leaves_nothing(tmp_path: Path):
    """Neither the folder nor those above it; and the name is free for another configuration."""
    config = TrainConfig(name="a", output=tmp_path / "deep" / "runs")
    with pytest.raises(ConfigError), hold_run_directory(config, print):
        raise ConfigError("a suite that is not there")
    assert list(tmp_path.iterdir()) == []
    take(config, done=False)
    assert (config.output / "a" / "config.json").is_file()


def test_a_folder_without_an_iteration_is_nobodys(tmp_path: Path):
    directory = take(TrainConfig(name="a", output=tmp_path), done=False)
    (directory / "evaluation").mkdir()
    (directory / "evaluation" / "base.json").write_text("{}")
    (directory / "metrics.jsonl").touch()
    take(TrainConfig(name="a", output=tmp_path, seed=1), done=False)
    assert json.loads((directory / "config.json").read_text())["seed"] == 1
    assert not (directory / "evaluation" / "base.json").exists(), "it was measured with other settings"


def test_a_run_may_move_and_be_extended(tmp_path: Path):
    directory = take(TrainConfig(name="a", output=tmp_path, iterations=8))
    moved = TrainConfig(
        name="a",
        output=tmp_path,
        iterations=12,
        save_every=3,
        keep_checkpoints=5,
        device="cpu",
        torch_threads=2,
        placement=PlacementConfig(players=2, ranks=3),
        collection=CollectionConfig(lanes=2, kind="processes"),
        evaluation=EvaluationConfig(videos=0, every=2),
        algorithm=PPOConfig(micro_batch=8),
    )
    assert take(moved) == directory
    assert json.loads((directory / "config.json").read_text())["placement"]["ranks"] == 3


def test_a_run_whose_rates_depend_on_its_length_is_not_extended(tmp_path: Path):
    decay = OptimizerConfig(final_share=0.1)
    take(TrainConfig(name="a", output=tmp_path, iterations=8, optimizer=decay))
    with pytest.raises(OutputError, match=r"iterations is 8 there and 12 here, and with optimizer.final_share 0.1 its"):
        take(TrainConfig(name="a", output=tmp_path, iterations=12, optimizer=decay))
