"""What stops whole runs on the real tabletop, what is said, and what is kept."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from miniature import run_config
from treadle.config.schema import (
    CollectionConfig,
    TrainConfig,
)
from treadle.errors import CheckpointError, DivergenceError, ExhaustedError, OutputError, Terminated
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.runtime import recorder
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.loop import train
from treadle.training.checkpoints import list_checkpoints
from treadle.training.on_policy.ppo import PPO
from whole_runs import assert_same_run, interrupt_at, press_ctrl_c

pytestmark = pytest.mark.integration


def test_ctrl_c_saves_and_the_same_command_goes_on(
    whole: tuple[TrainConfig, Path], tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    config = run_config(tmp_path, checkpoint, collection=CollectionConfig(lanes=2))
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert signal.getsignal(signal.SIGINT) is handler
    directory = tmp_path / "run"
    assert [path.name for path in list_checkpoints(directory / "checkpoints")] == ["iteration-000002"]
    assert len(read_metrics(directory)) == 2
    assert not (directory / "summary.json").exists()
    train(config)
    assert_same_run(directory, whole[1])
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["env_steps"] == sum(row["rollout/control_steps"] for row in read_metrics(directory))


@pytest.mark.parametrize(("crash", "kept"), [(0, 0), (1, 0), (3, 2)])
def test_a_crash_costs_what_was_not_saved_and_no_more(
    whole: tuple[TrainConfig, Path],
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: int,
    kept: int,
):
    config = run_config(tmp_path, checkpoint, save_every=2, collection=CollectionConfig(lanes=2))
    with monkeypatch.context() as patch:

        def fail() -> None:
            raise RuntimeError("power cut")

        interrupt_at(patch, crash, fail)
        with pytest.raises(RuntimeError, match=r"power cut"):
            train(config)
    directory = tmp_path / "run"
    assert len(list_checkpoints(directory / "checkpoints")) == bool(kept)
    train(config)
    assert [row["iteration"] for row in read_metrics(directory)] == [1, 2, 3, 4]
    assert_same_run(directory, whole[1])


def test_what_is_not_finite_stops_the_run_and_leaves_its_last_checkpoint(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    update = PPO.update

    def poisoned(self: PPO, rollouts: Any, iteration: int) -> dict[str, float]:
        if iteration == 2:
            rollouts[0].reward[0, 0, 0] = torch.nan
        return update(self, rollouts, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", poisoned)
        with pytest.raises(DivergenceError, match=r"rollout.reward is nan: .* resume with the same command"):
            train(run_config(tmp_path, checkpoint, save_every=1, iterations=3))
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(saved) > 0
    assert [row["iteration"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    weights = load_policy(saved[-1] / "policy").state_dict()  # type: ignore[attr-defined]
    assert all(bool(x.isfinite().all()) for x in weights.values())


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    def twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    interrupt_at(monkeypatch, 1, twice)
    with pytest.raises(KeyboardInterrupt):
        train(run_config(tmp_path, checkpoint))
    assert len(read_metrics(tmp_path / "run")) == 1
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_sigterm_saves_and_ends(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    interrupt_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated):
        train(run_config(tmp_path, checkpoint))
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["iteration-000002"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert not (tmp_path / "run" / ".lock").exists()


def test_sigterm_does_not_wait_longer_than_its_budget(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(recorder, "BUDGET", 0.2)

    def end_and_hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    interrupt_at(monkeypatch, 1, end_and_hang)
    with pytest.raises(Terminated):
        train(run_config(tmp_path, checkpoint, save_every=1))
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["iteration-000001"]
    said = capsys.readouterr().out
    assert "SIGTERM: stopping after this iteration, or in 0.2 s at the latest" in said
    assert "the iteration took more than 0.2 s; the last checkpoint is whole" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_evaluation_of_the_base_is_said(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: os.kill(os.getpid(), number) or time.sleep(60))
    # A shell lets what it runs in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(run_config(tmp_path, checkpoint))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped while the base was measured; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_what_to_lower(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail() -> None:
        raise error

    interrupt_at(monkeypatch, 0, fail)
    with pytest.raises(ExhaustedError, match=r"out of memory while training: .*algorithm.micro_batch=2 \(now 5\)"):
        train(run_config(tmp_path, checkpoint))


def test_a_full_disk_keeps_the_earlier_checkpoint_and_its_lines(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    saves: list[Path] = []

    def fill(state: Any, path: Path, save: Any = torch.save) -> None:
        saves.append(path)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OutputError, match=r"iteration-000002: cannot save the checkpoint .*No space left"):
        train(run_config(tmp_path, checkpoint, save_every=1))
    directory = tmp_path / "run"
    (kept,) = (directory / "checkpoints").iterdir()
    assert kept.name == "iteration-000001"
    (kept / "trainer.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"iteration-000001.trainer\.pt: 7 bytes; .*not whole, and none before"):
        train(run_config(tmp_path, checkpoint, save_every=1))
