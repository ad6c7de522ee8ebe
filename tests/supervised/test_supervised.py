"""Supervised runs, whole: what they write, and from what they may start."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from miniature import IMAGE, SIMULATOR
from treadle.config.schema import EvaluationConfig
from treadle.config.supervised import (
    DemonstrationConfig,
    GroundingConfig,
    ImitationConfig,
    SupervisedConfig,
    TinyModelConfig,
)
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import read_demonstrations
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.supervised.train import RESULT, train_supervised


@pytest.fixture(scope="module")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> tuple[SupervisedConfig, Path]:
    config = SupervisedConfig(
        name="tiny",
        output=tmp_path_factory.mktemp("runs"),
        device="cpu",
        torch_threads=1,
        model=TinyModelConfig(width=32, layers=2, mlp=64, tower_widths=((16, 16, 32, 32), (8, 8, 16, 16))),
        simulator=SIMULATOR.model_copy(update={"slots": 2, "horizon": 60}),
        grounding=GroundingConfig(scenes=32, detection_steps=50, joint_steps=50, batch=4),
        demonstrations=DemonstrationConfig(episodes=2, miss_probability=0),
        imitation=ImitationConfig(steps=50, batch=8),
        evaluation=EvaluationConfig(suites=("train",), episodes=2, slots=2, videos=0),
    )
    return config, train_supervised(config)


@pytest.mark.integration
def test_a_supervised_run_makes_a_checkpoint(supervised: tuple[SupervisedConfig, Path]):
    config, directory = supervised
    assert directory == config.output / "tiny"
    policy = load_policy(directory / "policy", device="cpu")
    assert (policy.chunk, policy.action_dim) == (4, 7)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() >= {"detection/loss", "detection/object_error", "detection/plate_error"}
    assert lines[1].keys() >= {"grounding/loss", "grounding/object_error", "grounding/plate_error"}
    assert lines[2].keys() >= {"imitation/loss", "imitation/total"}
    assert lines[2]["imitation/total"] > lines[2]["imitation/loss"], "scenes are mixed in"
    report = json.loads((directory / "evaluation" / "base.json").read_text())
    assert report["suites"]["train"]["episodes"] == 2
    assert report["manifest"]["checkpoint"] == "tiny", "the run of that name"
    assert len(read_demonstrations(directory / "demonstrations").actions) > 10


@pytest.mark.integration
def test_the_same_supervised_command_can_be_given_again(
    supervised: tuple[SupervisedConfig, Path], monkeypatch: pytest.MonkeyPatch
):
    """A run that was cut short goes on from the demonstrations and the perception that it had, to the same weights."""
    config, directory = supervised
    monkeypatch.delattr("treadle.supervised.train.pretrain_vision")
    lines = read_metrics(directory)
    before = (directory / "policy" / "model.safetensors").read_bytes()
    half_written = directory / ".demonstrations"
    half_written.mkdir()
    (half_written / "data").touch()
    (directory / RESULT).unlink()
    assert train_supervised(config) == directory
    assert (directory / "policy" / "model.safetensors").read_bytes() == before
    again = read_metrics(directory)
    assert again[:2] == lines[:2], "what perception reported is kept"
    assert [line["iteration"] for line in again] == [1, 2, 3]
    assert again[2]["seconds"] > again[1]["seconds"]


@pytest.mark.integration
def test_perception_that_was_cut_short_is_learned_again(supervised: tuple[SupervisedConfig, Path]):
    config, directory = supervised
    before = (directory / "policy" / "model.safetensors").read_bytes()
    (directory / "perception").rename(directory / ".perception")
    (directory / RESULT).unlink()
    assert train_supervised(config) == directory
    assert (directory / "policy" / "model.safetensors").read_bytes() == before
    assert not (directory / ".perception").exists()


@pytest.mark.integration
def test_another_policy_takes_the_towers(
    supervised: tuple[SupervisedConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One that decodes otherwise, and has no proprioception; only the joint stage of perception is left to it."""
    config, directory = supervised
    monkeypatch.delattr("treadle.supervised.train.pretrain_vision")
    towers = str(directory / "policy")
    other = config.model_copy(
        update={
            "name": "other",
            "output": tmp_path,
            "model": config.model.model_copy(update={"kind": "openvla"}),
            "grounding": config.grounding.model_copy(update={"towers": towers}),
        }
    )
    run = train_supervised(other)
    before, after = (load_policy(folder / "policy", device="cpu").state_dict() for folder in (directory, run))
    seen = [name for name in after if name.partition(".")[0] in ("vision_backbone", "projector")]
    assert seen
    assert all(torch.equal(after[name], before[name]) for name in seen)
    lines = read_metrics(run)
    assert [line["iteration"] for line in lines] == [1, 2]
    assert "grounding/loss" in lines[0]
    wide = other.model.model_copy(update={"tower_widths": ((16, 16, 32, 64), (8, 8, 16, 16))})
    with pytest.raises(CheckpointError, match="has shape"):
        train_supervised(other.model_copy(update={"name": "third", "model": wide}))


@pytest.mark.integration
def test_a_supervised_run_from_a_checkpoint_and_a_data_set(
    supervised: tuple[SupervisedConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, directory = supervised
    again = config.model_copy(
        update={
            "name": "again",
            "output": tmp_path,
            "checkpoint": str(directory / "policy"),
            "dataset": directory / "demonstrations",
        }
    )
    run = train_supervised(again)
    assert not (run / "demonstrations").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1]
    assert lines[0]["imitation/total"] == lines[0]["imitation/loss"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is no LeRobot dataset"):
        train_supervised(again.model_copy(update={"name": "third", "dataset": Path("absent")}))


@pytest.mark.integration
def test_a_data_set_in_other_units_is_refused_or_scaled_by_its_own_statistics(
    supervised: tuple[SupervisedConfig, Path], tmp_path: Path
):
    config, directory = supervised
    found = read_demonstrations(directory / "demonstrations")
    with DemonstrationWriter(
        tmp_path / "millimetres",
        fps=found.fps,
        cameras=found.cameras,
        height=IMAGE,
        width=IMAGE,
        action_names=[f"a{i}" for i in range(7)],
        state_names=[f"s{i}" for i in range(found.state.shape[1])],
    ) as writer:
        rows = found.episode_index == 0
        actions = found.actions[rows] * np.array([1000] * 3 + [1] * 4, np.float32)
        writer.add_episode(found.frames[rows], found.state[rows], actions, found.instructions[0], True, "0")
    again = {
        "output": tmp_path,
        "checkpoint": str(directory / "policy"),
        "dataset": tmp_path / "millimetres",
        "imitation": ImitationConfig(steps=1, batch=2, grounding_share=0),
    }
    with pytest.raises(ConfigError, match=r"millimetres does not fit the checkpoint's statistics 'tabletop', which cl"):
        train_supervised(config.model_copy(update=again))
    own = ImitationConfig(steps=1, batch=2, grounding_share=0, statistics="dataset")
    run = train_supervised(config.model_copy(update=again | {"name": "own", "imitation": own}))
    scaling = load_policy(run / "policy", device="cpu").scaling
    assert scaling is not None
    assert scaling.action.high[:3].max() == pytest.approx(np.quantile(actions[:, :3], 0.99, axis=0).max(), rel=1e-5)
