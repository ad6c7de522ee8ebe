"""Treadle from Python."""

from pathlib import Path

import pytest

import treadle
from miniature import IMAGE
from treadle.errors import ConfigError

SMALL = {
    "iterations": 2,
    "decisions": 2,
    "device": "cpu",
    "simulator.slots": 4,
    "simulator.horizon": 8,
    "simulator.threads": 1,
    "simulator.options": {"image_size": IMAGE},
    "evaluation.suites": ["train"],
    "evaluation.episodes": 3,
    "evaluation.slots": 3,
    "evaluation.videos": 0,
    "algorithm.minibatch": 8,
    "algorithm.micro_batch": 8,
}


@pytest.mark.integration
def test_train_load_and_evaluate(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = treadle.train("quickstart", SMALL | {"name": "mine", "policy.checkpoint": str(checkpoint)})
    assert run == Path("runs/mine")
    assert (run / "report.html").exists()
    policy = treadle.load_policy(run, device="cpu")
    assert policy.chunk == 4
    settings = {key: value for key, value in SMALL.items() if key.startswith(("simulator.", "evaluation."))}
    found = treadle.evaluate(run, settings, device="cpu")
    assert found["suites"]["train"]["episodes"] == 3
    assert Path(found["folder"]).parent == Path("evaluations")
    assert found["manifest"]["checkpoint"] == "mine"


def test_mistakes_are_those_of_the_commands(tmp_path: Path):
    with pytest.raises(ConfigError, match="unknown recipe 'quickstar', did you mean 'quickstart'"):
        treadle.train("quickstar")
    with pytest.raises(ConfigError, match="unknown key 'iteration', did you mean 'iterations'"):
        treadle.train("quickstart", {"iteration": 3})
    with pytest.raises(ConfigError, match="is for `treadle train`"):
        treadle.sft("quickstart")
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = treadle.trian  # type: ignore[attr-defined]


def test_a_packaged_policy_is_loaded_by_name():
    assert treadle.load_policy("tabletop-base", device="cpu").action_dim == 7
