"""Fine-tuning by adapters and in bfloat16, in whole runs."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from miniature import run_config
from treadle.config.schema import FineTuningConfig, LoraConfig, PolicyConfig, TrainConfig
from treadle.policies import adapters, load_policy
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.reporting.metrics import read_metrics
from treadle.runtime.loop import train
from treadle.training.checkpoints import list_checkpoints
from treadle.training.finetuning import load_trainable
from treadle.training.on_policy.ppo import PPO

CPU = torch.device("cpu")


def adapted_run(output: Path, checkpoint: Path, **fields: Any) -> TrainConfig:
    policy = PolicyConfig(
        checkpoint=str(checkpoint),
        frozen_dimensions=(3, 4),
        lora=LoraConfig(rank=4),
        gradient_checkpointing=True,
        freeze_vision=False,
        **fields,
    )
    return run_config(output, checkpoint, policy=policy, iterations=3, save_every=1)


@pytest.mark.integration
def test_a_run_with_adapters(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints hold adapters alone, the end is merged, and an interrupted run goes on as if it had not been."""
    whole = train(adapted_run(tmp_path / "whole", checkpoint))
    (last,) = list_checkpoints(whole / "checkpoints")[-1:]
    files = {path.name for path in (last / "policy").iterdir()}
    assert adapters.FOLDER in files
    assert "model.safetensors" not in files
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, whole / "policy"))
    assert before.keys() == after.keys()
    trained = {name for name in before if not torch.equal(before[name], after[name])}
    kept = load_policy(last / "policy", device="cpu", merge=False)
    assert isinstance(kept, PrismaticPolicy)
    assert trained == {f"{name}.weight" for name in adapters.layers(kept)}
    assert trained

    update = PPO.update

    def interrupted(self: PPO, rollouts: Any, iteration: int) -> dict[str, float]:
        if iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, rollouts, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(adapted_run(tmp_path / "parts", checkpoint))
    parts = train(adapted_run(tmp_path / "parts", checkpoint))
    again = load_file(parts / "policy" / "model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)
    for rows in (read_metrics(whole), read_metrics(parts)):
        assert all(row["update/log_prob_gap"] < 1e-4 for row in rows if "update/log_prob_gap" in row)


@pytest.mark.integration
def test_a_run_in_bfloat16(checkpoint: Path, tmp_path: Path) -> None:
    config = run_config(
        tmp_path, checkpoint, policy=PolicyConfig(checkpoint=str(checkpoint), dtype="bfloat16"), iterations=2
    )
    directory = train(config)
    weights = load_file(directory / "policy" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    state = torch.load(
        list_checkpoints(directory / "checkpoints")[-1] / "trainer.pt", map_location="cpu", weights_only=True
    )
    masters = state["algorithm"]["optimizer"]["masters"]
    assert masters
    assert {master.dtype for master in masters} == {torch.float32}


def test_settings_of_a_policy(checkpoint: Path) -> None:
    settings = FineTuningConfig(options={"prompt_length": 50}, gradient_checkpointing=True)
    policy = load_trainable(checkpoint, settings, CPU, freeze_vision=True)
    assert isinstance(policy, PrismaticPolicy)
    assert policy.config.prompt_length == 50
    assert all(layer.recompute for layer in policy.language_model.model.layers)
    assert not adapters.layers(policy)
    for frozen in (False, True):
        lora = FineTuningConfig(lora=LoraConfig(rank=2, targets=("q_proj", "fc1")))
        adapted = load_trainable(checkpoint, lora, CPU, freeze_vision=frozen)
        assert isinstance(adapted, PrismaticPolicy)
        assert ("projector.fc1" in adapters.layers(adapted)) != frozen
