"""Imitation that is cut short goes on from where it was kept, to the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from miniature import SIMULATOR
from treadle.config.robot import RobotConfig
from treadle.config.schema import EvaluationConfig, FineTuningConfig, LoraConfig
from treadle.config.supervised import (
    DemonstrationConfig,
    GroundingConfig,
    ImitationConfig,
    SupervisedConfig,
    TinyModelConfig,
)
from treadle.errors import CheckpointError, OutputError
from treadle.reporting.metrics import read_metrics
from treadle.supervised import imitation
from treadle.supervised.checkpoint import STATE, Draws, ImitationCheckpoint, Trained
from treadle.supervised.grounding import cosine
from treadle.supervised.robot import OPEN_LOOP
from treadle.supervised.train import RESULT, train_supervised
from treadle.training.checksums import write_checksums

ARMS = Path(__file__).parents[1] / "fixtures" / "lerobot_arms" / "v3.0"
TINY = TinyModelConfig(width=32, layers=1, mlp=64, tower_widths=((8, 16, 16, 16), (8, 8, 8, 8)))
PLAIN = {"freeze_vision": False, "grounding_share": 0.0}


def grounded(output: Path, **fields: Any) -> SupervisedConfig:
    """On demonstrations of the expert, with scenes mixed in."""
    return SupervisedConfig(
        **{
            "name": "run",
            "output": output,
            "device": "cpu",
            "torch_threads": 1,
            "model": TINY,
            "simulator": SIMULATOR.model_copy(update={"slots": 2, "horizon": 60}),
            "grounding": GroundingConfig(scenes=16, detection_steps=2, joint_steps=2, batch=4),
            "demonstrations": DemonstrationConfig(episodes=2, miss_probability=0),
            "imitation": ImitationConfig(steps=120, batch=8, save_every=50, label_width=1.0),
            "evaluation": EvaluationConfig(suites=("train",), episodes=1, slots=1, videos=0),
            **fields,
        }
    )


def token_by_token(output: Path) -> SupervisedConfig:
    """A policy that reads tokens drawn from the spread labels."""
    return grounded(output, model=TINY.model_copy(update={"kind": "openvla"}))


def of_a_robot(output: Path, **fields: Any) -> SupervisedConfig:
    """On a data set that is read batch by batch, without a simulator."""
    settings = ImitationConfig(steps=120, batch=8, save_every=50, cache_gb=0.0, held=True, **PLAIN)
    return grounded(output, dataset=ARMS, robot=RobotConfig(name="arms"), imitation=settings, **fields)


def adapters(output: Path, checkpoint: Path) -> SupervisedConfig:
    """Adapters on a checkpoint, scaled by the data set's statistics."""
    settings = ImitationConfig(steps=120, batch=8, save_every=50, statistics="dataset", grounding_share=0.0)
    policy = FineTuningConfig(lora=LoraConfig(rank=4))
    return grounded(output, checkpoint=str(checkpoint), policy=policy, imitation=settings)


def steps_of(monkeypatch: pytest.MonkeyPatch, stop: int | None) -> list[int]:
    """The steps that are begun from here on; Ctrl-C comes at one."""
    begun: list[int] = []

    def at(step: int, steps: int) -> float:
        begun.append(step)
        if step == stop:
            raise KeyboardInterrupt
        return cosine(step, steps)

    monkeypatch.setattr(imitation, "cosine", at)
    return begun


def weights(directory: Path) -> bytes:
    return (directory / "policy" / "model.safetensors").read_bytes()


def numbers(directory: Path) -> list[dict[str, float]]:
    return [{name: x for name, x in row.items() if name != "seconds"} for row in read_metrics(directory)]


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["grounded", "tokens", "robot", "adapters"])
def test_imitation_goes_on_to_the_same_weights(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    makers = {
        "grounded": grounded,
        "tokens": token_by_token,
        "robot": of_a_robot,
        "adapters": lambda output: adapters(output, checkpoint),
    }
    make = makers[kind]
    whole = train_supervised(make(tmp_path / "whole"))
    steps_of(monkeypatch, 70)
    with pytest.raises(KeyboardInterrupt):
        train_supervised(make(tmp_path / "cut"))
    begun = steps_of(monkeypatch, None)
    cut = train_supervised(make(tmp_path / "cut"))
    assert begun == list(range(50, 120))
    assert weights(cut) == weights(whole)
    assert numbers(cut) == numbers(whole)
    assert not [*cut.glob("imitation"), *cut.glob(".imitation*")], "nothing is left of what is done"


@pytest.mark.integration
def test_an_evaluation_that_is_cut_short_needs_no_step_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("treadle.supervised.train.evaluate_policy", stop)
        with pytest.raises(KeyboardInterrupt):
            train_supervised(grounded(tmp_path))
    before, begun = weights(tmp_path / "run"), steps_of(monkeypatch, None)
    assert weights(train_supervised(grounded(tmp_path))) == before
    assert begun == []
    assert (tmp_path / "run" / "evaluation" / "base.json").exists()


@pytest.mark.integration
@pytest.mark.parametrize(("make", "result"), [(grounded, RESULT), (of_a_robot, OPEN_LOOP)])
def test_a_finished_run_stays_as_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    make: Any,
    result: str,
):
    directory = train_supervised(make(tmp_path))
    found = (directory / result).read_bytes()
    (directory / "imitation").mkdir()
    begun = steps_of(monkeypatch, None)
    assert train_supervised(make(tmp_path)) == directory
    assert begun == []
    assert (directory / result).read_bytes() == found
    assert not (directory / "imitation").exists(), "left by a kill between result and removal"
    assert len(read_metrics(directory)) > 0
    said = caplog.text + capfd.readouterr().out
    assert "is finished and stays as it is; choose another name=..." in said
    assert "begins anew" not in said
    with pytest.raises(OutputError, match="already holds another run"):
        train_supervised(make(tmp_path, seed=1))


@pytest.mark.integration
def test_what_is_not_whole_is_said_and_imitation_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    steps_of(monkeypatch, 70)
    with pytest.raises(KeyboardInterrupt):
        train_supervised(grounded(tmp_path))
    path = tmp_path / "run" / "imitation" / STATE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    begun = steps_of(monkeypatch, None)
    train_supervised(grounded(tmp_path))
    assert begun == list(range(120))
    assert f"{path}: " in caplog.text
    assert "the checkpoint of the imitation is not whole; imitation begins anew" in caplog.text


def parts(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    return {"weights": Trained(module), "noise": Draws(torch.Generator().manual_seed(seed))}


def test_it_is_kept_as_often_as_asked_and_at_the_end(tmp_path: Path):
    saving, kept = ImitationCheckpoint(tmp_path, 60, pytest.fail), list[int]()
    for step in range(1, 231):
        saving.save(step, 230, parts(0))
        if saving.step == step:
            kept.append(step)
    assert kept == [100, 200, 230], "in steps of 60, rounded up to lines of metrics"
    for step in (50, 100):
        ImitationCheckpoint(tmp_path / "never", 0, pytest.fail).save(step, 100, parts(0))
    assert not (tmp_path / "never").exists()


def test_all_parts_go_on_where_they_were(tmp_path: Path):
    ImitationCheckpoint(tmp_path, 50, pytest.fail).save(50, 100, saved := parts(0))
    kept, found = ImitationCheckpoint(tmp_path, 50, pytest.fail), parts(1)
    assert kept.step == 50
    kept.restore(found)
    assert found["weights"].state_dict().keys() == {"weight"}, "what is trained"
    assert torch.equal(found["weights"].state_dict()["weight"], saved["weights"].state_dict()["weight"])
    assert torch.equal(found["noise"].state_dict(), saved["noise"].state_dict())


def test_what_is_of_something_else_is_refused_by_name(tmp_path: Path):
    ImitationCheckpoint(tmp_path, 50, pytest.fail).save(50, 100, parts(0))
    with pytest.raises(CheckpointError, match=r"state.pt: parts: found \['noise', 'weights'\], allowed \['noise'\]"):
        ImitationCheckpoint(tmp_path, 50, pytest.fail).restore({"noise": parts(0)["noise"]})
    with pytest.raises(CheckpointError, match=r"as the state of weights: it is of other weights than .*; remove"):
        ImitationCheckpoint(tmp_path, 50, pytest.fail).restore(
            parts(0) | {"weights": Trained(nn.Linear(4, 5, bias=False))}
        )
    state = {"step": 50, "parts": {"noise": torch.zeros(3), "weights": {}}}
    torch.save(state, tmp_path / "imitation" / STATE)
    (tmp_path / "imitation" / "checksums.json").unlink()
    write_checksums(tmp_path / "imitation", {})
    with pytest.raises(CheckpointError, match=r"state.pt: not readable as the state of noise: .*; remove .*imitation"):
        ImitationCheckpoint(tmp_path, 50, pytest.fail).restore(
            {"noise": parts(0)["noise"], "weights": parts(0)["weights"]}
        )


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    kept = ImitationCheckpoint(tmp_path / "file", 50, pytest.fail)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot save the checkpoint of the imitation .*imitation.save_every=0"):
        kept.save(50, 100, parts(0))
