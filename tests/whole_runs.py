"""Runs that are compared with each other, or disturbed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from miniature import run_config
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.runtime.loop import train
from treadle.training.on_policy.ppo import PPO


def numbers(directory: Path) -> list[dict[str, float]]:
    """The metrics of a run, less wall times."""
    rows = read_metrics(directory)
    return [
        {key: x for key, x in row.items() if not key.startswith(("time/", "speed/", "idle/")) and key != "seconds"}
        for row in rows
    ]


def final_weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_policy(directory / "policy", device="cpu").state_dict()  # type: ignore[attr-defined]


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    left, right = final_weights(one), final_weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_resumes(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Path:
    """A run that Ctrl-C stopped and that was resumed equals one that was left alone, whose folder is returned."""
    one = train(run_config(tmp_path / "one", checkpoint, **fields))
    config = run_config(tmp_path / "other", checkpoint, **fields)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert_same_run(one, train(config))
    return one


def interrupt_at(monkeypatch: pytest.MonkeyPatch, iteration: int, act: Any) -> None:
    """Do `act` in the middle of one iteration."""
    update = PPO.update

    def disturbed(self: PPO, rollout: Any, now: int) -> dict[str, float]:
        if now == iteration:
            act()
        return update(self, rollout, now)

    monkeypatch.setattr(PPO, "update", disturbed)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
