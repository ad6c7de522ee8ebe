"""Low-rank adapters: function, gradients, merging, saving alone and beside a base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_samples import Official, make_tiny, sample_inputs
from safetensors.torch import load_file, save_file

from treadle.data.noise import noise_key
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import adapters, load_policy
from treadle.policies.prismatic.policy import LORA_TARGETS, PrismaticPolicy
from treadle.policies.protocol import Evaluation
from treadle.policies.sampling import Sampling

KEYS = noise_key(np.arange(3))


def disturb(policy: PrismaticPolicy, seed: int = 0) -> None:
    """Give every adapter's second matrix values other than zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def evaluate(policy: PrismaticPolicy) -> Evaluation:
    inputs = sample_inputs(policy, 3)
    tokens = policy.act(inputs, Sampling(), KEYS).choice
    return policy.evaluate(inputs, tokens, Sampling())


@pytest.fixture
def base(tokenizer: Path, tmp_path: Path) -> Path:
    make_tiny(tokenizer).save(tmp_path / "base")
    return tmp_path / "base"


def load(directory: Path, **options: object) -> PrismaticPolicy:
    policy = load_policy(directory, device="cpu", **options)
    assert isinstance(policy, PrismaticPolicy)
    return policy


def test_fresh_adapters_change_nothing_and_alone_are_trained(base: Path) -> None:
    plain, adapted = load(base), load(base)
    torch.manual_seed(0)
    adapted.add_lora(4)
    torch.testing.assert_close(evaluate(adapted).log_probs, evaluate(plain).log_probs, atol=1e-6, rtol=0)
    groups = adapted.freeze(vision=True)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in n or n.startswith(("proprio_projector.", "value_head.")) for n in trained)
    disturb(adapted)
    inputs = sample_inputs(adapted, 3)
    evaluation = adapted.evaluate(inputs, adapted.act(inputs, Sampling(), KEYS).choice, Sampling())
    assert evaluation.values is not None
    (evaluation.log_probs.sum() + evaluation.values.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in groups["policy"])
    assert {p.dtype for p in groups["policy"]} == {torch.float32}


def test_acting_agrees_with_evaluating(base: Path) -> None:
    policy = load(base)
    policy.add_lora(4, alpha=8)
    disturb(policy)
    inputs = sample_inputs(policy, 3)
    decision = policy.act(inputs, Sampling(), KEYS)
    evaluation = policy.evaluate(inputs, decision.choice, Sampling())
    torch.testing.assert_close(evaluation.log_probs.detach(), decision.log_probs, atol=1e-5, rtol=0)


def test_the_published_targets(official: Official) -> None:
    policy = load(official.directory, statistics="libero_spatial")
    policy.add_lora(4, vision=True)
    adapted = adapters.layers(policy)
    assert {name.rpartition(".")[2] for name in adapted} == set(LORA_TARGETS) - {"out_proj", "q", "kv"}
    assert "vision_backbone.featurizer.patch_embed.proj" in adapted
    assert "projector.fc3" in adapted
    assert "language_model.lm_head" in adapted
    # The proprioception projector and the action head lie in files of their own, and are trained whole.
    assert not any(name.startswith(("proprio_projector", "action_head")) for name in adapted)
    # The last block of a tower takes no part in the output.
    assert "vision_backbone.featurizer.blocks.1.attn.qkv" in adapted
    assert "vision_backbone.featurizer.blocks.2.attn.qkv" not in adapted
    groups = policy.freeze(vision=False)
    inputs = policy.prepare(official.frames(0, 1), ["lift"], np.zeros((1, 8), np.float32))
    policy.evaluate(inputs, policy.act(inputs, Sampling()).choice, Sampling()).log_probs.sum().backward()
    idle = {name for name, p in policy.named_parameters() if p.requires_grad and p.grad is None}
    # A regressing policy does not use the head of tokens.
    assert idle == {f"language_model.lm_head.lora_{matrix}.default.weight" for matrix in "AB"}
    assert groups["policy"]


def test_merging_for_export(base: Path, tmp_path: Path) -> None:
    policy = load(base)
    policy.add_lora(4, vision=True)
    disturb(policy)
    expected = evaluate(policy).log_probs.detach()
    policy.save(tmp_path / "merged")
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {path.name for path in base.iterdir()}
    merged = load(tmp_path / "merged")
    torch.testing.assert_close(evaluate(merged).log_probs.detach(), expected, atol=1e-5, rtol=0)
    # What has no adapter is as it was, bit for bit; the policy itself was not changed by saving.
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    names = {f"{name}.weight" for name in adapters.layers(policy)}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == (name not in names), name
    torch.testing.assert_close(evaluate(policy).log_probs.detach(), expected)
    adapters.merge(policy)
    assert not adapters.layers(policy)
    torch.testing.assert_close(evaluate(policy).log_probs.detach(), expected, atol=1e-5, rtol=0)


def test_an_adapter_alone_beside_its_base(base: Path, tmp_path: Path) -> None:
    policy = load(base)
    policy.add_lora(4, alpha=2)
    disturb(policy)
    folder = tmp_path / "alone"
    policy.save(folder, merge=False)
    assert not (folder / "model.safetensors").exists()
    config = json.loads((folder / "lora_adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 2)
    kept = load(folder, merge=False)
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in policy.state_dict().items())
    kept.add_lora(4)
    assert adapters.layers(kept).keys() == adapters.layers(policy).keys()
    with pytest.raises(ConfigError, match=r"policy\.lora\.rank 8: the checkpoint has adapters of rank \[4\]"):
        kept.add_lora(8)
    merged = load(folder)
    assert not adapters.layers(merged)
    expected = evaluate(policy).log_probs.detach()
    torch.testing.assert_close(evaluate(merged).log_probs.detach(), expected, atol=1e-5, rtol=0)
    # peft's own directory, without a policy's files, beside a relative base.
    bare = tmp_path / "bare"
    shutil.copytree(folder / "lora_adapter", bare)
    (bare / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    torch.testing.assert_close(evaluate(load(bare)).log_probs.detach(), expected, atol=1e-5, rtol=0)


def test_peft_reads_what_is_saved(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    policy = load(base)
    policy.add_lora(4)
    disturb(policy)
    policy.save(tmp_path / "alone", merge=False)
    read = PeftModel.from_pretrained(load(base), tmp_path / "alone" / "lora_adapter")  # pyright: ignore[reportArgumentType]
    there = read.state_dict()
    for name, tensor in policy.state_dict().items():
        assert torch.equal(there[f"base_model.model.{name}"], tensor), name


def test_bfloat16_weights_with_float32_adapters(base: Path) -> None:
    policy = load(base, dtype="bfloat16")
    policy.add_lora(4)
    disturb(policy)
    groups = policy.freeze(vision=True)
    adapter = [p for name, p in policy.named_parameters() if ".lora_" in name]
    assert {p.dtype for p in adapter} == {torch.float32}
    evaluation = evaluate(policy)
    evaluation.log_probs.sum().backward()
    assert all(p.grad is not None for p in groups["policy"])
    policy.save(base.parent / "merged")
    assert (
        load_file(base.parent / "merged" / "model.safetensors")["language_model.lm_head.weight"].dtype == torch.bfloat16
    )


def spoil(folder: Path, key: str, value: object) -> None:
    path = folder / "lora_adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


def test_adapters_that_cannot_be_used(base: Path, tmp_path: Path) -> None:
    policy = load(base)
    policy.add_lora(4)
    policy.save(tmp_path / "alone", merge=False)

    def fails(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "alone")

    for key, value, message in (
        ("use_dora", True, "use_dora True; supported: false"),
        ("use_dora", False, ""),
        ("base_model_name_or_path", "org/name", "the base 'org/name' is no directory here; download it"),
        ("base_model_name_or_path", "", "no base_model_name_or_path"),
        ("base_model_name_or_path", str(base), ""),
        ("r", 8, r"q_proj\.lora_A\.weight has shape \[4, 32\], the config asks \[8, 32\]"),
        ("r", "x", "r 'x'; it must be a number"),
        ("r", 4, ""),
    ):
        spoil(tmp_path / "alone", key, value)
        if message:
            fails(message)
    weights = tmp_path / "alone" / "lora_adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "base_model.model.language_model.ghost.lora_A.weight": torch.ones(4, 4)}, weights)
    fails(r"adapters of 1 layers that the policy has not: \['language_model\.ghost'\]")
    dropped = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != dropped}, weights)
    fails("1 missing: ")
    with pytest.raises(ConfigError, match=r"policy\.lora\.targets: no layer is named qq; published: proj"):
        load(base).add_lora(4, targets=["qq"])
    made = load(base)
    made.add_lora(4)
    made.base = None
    with pytest.raises(ConfigError, match="this policy was made, not loaded"):
        made.save(tmp_path / "x", merge=False)


@pytest.mark.parametrize("adapted", [False, True])
def test_gradient_checkpointing_has_the_same_gradients(official: Official, adapted: bool) -> None:
    gradients, kept = [], []
    for enabled in (False, True):
        policy = load(official.directory, statistics="libero_spatial", head="tokens", proprioception_dim=0)
        torch.manual_seed(0)
        if adapted:
            policy.add_lora(4, vision=True)
            disturb(policy)
        policy.recompute(enabled)
        policy.freeze(vision=False)
        inputs = policy.prepare(official.frames(0, 1), ["lift"])
        stored: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=stored: (s.append(x.numel()), x)[1], lambda x: x):
            log_probs = policy.evaluate(inputs, torch.full((1, 56), 31900), Sampling()).log_probs
        log_probs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
        kept.append(sum(stored))
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < kept[0] / 2
