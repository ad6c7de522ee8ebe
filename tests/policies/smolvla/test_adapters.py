"""Adapters on a SmolVLA: they alone are trained, by rewards too; they are merged, or saved beside a base."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from smolvla_samples import FIXTURE
from torch import Tensor

from miniature import run_config
from treadle.config.checkpoints import resolve_checkpoint
from treadle.config.schema import CriticConfig, EvaluationConfig, LoraConfig, PolicyConfig
from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies import adapters, load_policy
from treadle.policies.checkpoint import read_json
from treadle.policies.sampling import Sampling
from treadle.policies.smolvla import SmolVLA
from treadle.policies.smolvla.inputs import SmolVLAInputs
from treadle.runtime.loop import train
from treadle.training.checkpoints import list_checkpoints

Load = Callable[..., SmolVLA]
Prepare = Callable[[SmolVLA], SmolVLAInputs]
NOISY = Sampling()
KEYS = noise_key(5, torch.arange(3).numpy())
LAYER = "model.vlm_with_expert.lm_expert.layers"
HEADS = ("state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out")


def adapt(policy: SmolVLA, rank: int = 2) -> SmolVLA:
    """With adapters that change something."""
    torch.manual_seed(0)
    policy.add_lora(rank)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return policy


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_fresh_adapters_change_nothing_and_alone_are_trained(load: Load, prepare: Prepare, dtype: torch.dtype | None):
    plain, policy = load(dtype=dtype), load(dtype=dtype)
    inputs = prepare(plain)
    before = plain.act(inputs, NOISY, KEYS)
    policy.add_lora(2)
    assert torch.equal(policy.act(inputs, NOISY, KEYS).actions, before.actions)
    # lerobot's own targets: queries and values of the expert, and the five projections.
    blocks = {f"{LAYER}.{i}.self_attn.{name}_proj" for i in range(4) for name in "qv"}
    assert adapters.layers(policy).keys() == blocks | {f"model.{name}" for name in HEADS}
    groups = policy.freeze()
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert all(adapters.is_adapter(name) for name in trained)
    policy.evaluate(inputs, before.choice, NOISY).log_probs.sum().backward()
    assert {p.dtype for p in groups["policy"]} == {torch.float32}
    assert all(p.grad is not None for p in groups["policy"])
    with pytest.raises(ConfigError, match=r"no layer is named c_proj; published: q_proj, v_proj, state_proj"):
        load().add_lora(2, targets=["c_proj"])


def test_merged_weights_act_as_adapters_do(load: Load, prepare: Prepare, tmp_path: Path):
    """Merged by hand: W + alpha / rank B A. What has none is as it was, bit for bit, and lerobot's names stay."""
    policy = adapt(load(dtype=torch.float32))
    inputs = prepare(policy)
    wanted = policy.act(inputs, NOISY, KEYS)
    policy.save(tmp_path / "merged")
    before = {name: x.float() for name, x in load_file(FIXTURE / "model.safetensors").items()}
    after = load_file(tmp_path / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, layer in adapters.layers(policy).items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert isinstance(down, Tensor)
        assert isinstance(up, Tensor)
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + up.detach() @ down.detach())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in adapters.layers(policy)}
    found = load(tmp_path / "merged").act(inputs, NOISY, KEYS)
    torch.testing.assert_close(found.actions, wanted.actions, atol=1e-4, rtol=1e-4)


def test_adapters_alone_lie_beside_their_base(load: Load, prepare: Prepare, tmp_path: Path):
    policy = adapt(load())
    policy.add_value_head(1)
    inputs = prepare(policy)
    wanted = policy.act(inputs, NOISY, KEYS)
    policy.save(tmp_path / "adapter", merge=False)
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "model.safetensors" not in files
    assert {adapters.FOLDER, "value_head.safetensors", "treadle.json"} <= files
    named = read_json(tmp_path / "adapter" / adapters.FOLDER / adapters.ADAPTER_CONFIG)
    assert named["base_model_name_or_path"] == str(FIXTURE)
    again = load(tmp_path / "adapter", merge=False)
    assert torch.equal(again.act(inputs, NOISY, KEYS).actions, wanted.actions)
    again.add_lora(2)
    with pytest.raises(ConfigError, match=r"has adapters of rank \[2\]; keep theirs"):
        again.add_lora(3)
    merged = load(tmp_path / "adapter")
    assert not adapters.layers(merged)
    torch.testing.assert_close(merged.act(inputs, NOISY, KEYS).actions, wanted.actions, atol=0.05, rtol=0.05)


@pytest.mark.integration
def test_a_run_with_adapters(tmp_path: Path):
    """Of the packaged flow policy: rewards move the adapters alone, and what is kept has them merged."""
    policy = PolicyConfig(checkpoint="tabletop-base-flow", options={"trained": "expert"}, lora=LoraConfig(rank=2))
    small = EvaluationConfig(suites=("train",), episodes=1, slots=1, videos=0)
    config = run_config(tmp_path, Path(), policy=policy, evaluation=small, critic=CriticConfig(), iterations=2)
    config = config.model_copy(update={"simulator": config.simulator.model_copy(update={"options": {}})})
    folder = train(config)
    (last,) = list_checkpoints(folder / "checkpoints")[-1:]
    kept = load_policy(last / "policy", device="cpu", merge=False)
    second = [x for name, x in kept.named_parameters() if ".lora_B." in name]
    assert len(second) == len(adapters.layers(kept))
    assert all(bool(x.any()) for x in second)
    base = load_policy(resolve_checkpoint("tabletop-base-flow"), device="cpu").state_dict()
    final = load_policy(folder / "policy", device="cpu").state_dict()
    changed = {name for name in base if not torch.equal(base[name], final[name])}
    assert changed == {f"{name}.weight" for name in adapters.layers(kept)}
