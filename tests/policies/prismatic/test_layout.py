"""Names, shapes and dtypes of the published layout, and which policy a directory holds."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_samples import Official, sample_inputs
from safetensors import safe_open

from treadle.data.noise import noise_key
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.policies.checkpoint import read_carried
from treadle.policies.load import installed_policies, policy_class
from treadle.policies.prismatic.config import tiny_config
from treadle.policies.prismatic.openvla import OpenVLA, OpenVLAConfig
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.sizes import make_statistics, sized_config
from treadle.policies.sampling import Sampling


def templates(names: set[str]) -> set[str]:
    return {re.sub(r"\.\d+\.", ".N.", name) for name in names}


@pytest.mark.parametrize("policy_class", [OpenVLA, OpenVLAOFT])
def test_full_size_has_the_published_tensors(policy_class: type[PrismaticPolicy], official: Official) -> None:
    config = sized_config(policy_class.config_type, "7b")
    statistics = make_statistics("bridge_orig", [-1.0] * 7, [1.0] * 7, [], [])
    policy = policy_class(config, statistics, "bridge_orig", read_carried(official.directory), allocate=False)
    state = policy.to(torch.bfloat16).state_dict()
    assert len(state) == 982
    assert 7.54e9 < sum(tensor.numel() for tensor in state.values()) < 7.55e9
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    index = json.loads((official.directory / "model.safetensors.index.json").read_text())
    assert templates(set(state)) == templates(set(index["weight_map"]))
    vision = "vision_backbone."
    expected = {
        f"{vision}featurizer.pos_embed": (1, 256, 1024),
        f"{vision}featurizer.cls_token": (1, 1, 1024),
        f"{vision}featurizer.reg_token": (1, 4, 1024),
        f"{vision}featurizer.patch_embed.proj.weight": (1024, 3, 14, 14),
        f"{vision}featurizer.blocks.23.attn.qkv.weight": (3072, 1024),
        f"{vision}featurizer.blocks.23.mlp.fc1.weight": (4096, 1024),
        f"{vision}featurizer.blocks.23.ls2.scale_factor": (1024,),
        f"{vision}fused_featurizer.pos_embed": (1, 256, 1152),
        f"{vision}fused_featurizer.blocks.26.mlp.fc2.weight": (1152, 4304),
        f"{vision}fused_featurizer.attn_pool.latent": (1, 1, 1152),
        f"{vision}fused_featurizer.attn_pool.kv.weight": (2304, 1152),
        "projector.fc1.weight": (8704, 2176),
        "projector.fc2.weight": (4096, 8704),
        "projector.fc3.weight": (4096, 4096),
        "language_model.model.embed_tokens.weight": (32064, 4096),
        "language_model.lm_head.weight": (32064, 4096),
        "language_model.model.layers.31.self_attn.k_proj.weight": (4096, 4096),
        "language_model.model.layers.31.mlp.down_proj.weight": (4096, 11008),
        "language_model.model.norm.weight": (4096,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    for block, last in (("featurizer", 23), ("fused_featurizer", 26)):
        assert f"{vision}{block}.blocks.{last + 1}.norm1.weight" not in state
    assert "language_model.model.layers.32.mlp.up_proj.weight" not in state


def stored(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    return tensors


def test_a_saved_checkpoint_is_the_published_one(official_openvla: Official, tmp_path: Path) -> None:
    policy = load_policy(official_openvla.directory, device="cpu", statistics="bridge_orig")
    policy.save(tmp_path / "policy")
    before, after = stored(official_openvla.directory), stored(tmp_path / "policy")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "policy" / name).read_bytes() == (official_openvla.directory / name).read_bytes()


def test_own_directories_name_their_policy(policy: PrismaticPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy", device="cpu")
    assert type(again) is type(policy)
    assert again.config.tokens == policy.config.tokens
    inputs = sample_inputs(policy, 3)
    keys = noise_key(np.arange(3))
    assert torch.equal(again.act(inputs, Sampling(), keys).log_probs, policy.act(inputs, Sampling(), keys).log_probs)


def test_published_directories_are_told_apart(official: Official, official_openvla: Official, tmp_path: Path) -> None:
    found = load_policy(official_openvla.directory, device="cpu", statistics="bridge_orig")
    assert isinstance(found, OpenVLA)
    assert found.config.tokens == 7
    assert isinstance(load_policy(official.directory, device="cpu", statistics="libero_spatial"), OpenVLAOFT)
    plain = tmp_path / "plain"
    shutil.copytree(official.directory, plain, ignore=shutil.ignore_patterns("*.pt"))
    assert isinstance(load_policy(plain, device="cpu", statistics="libero_spatial"), OpenVLA)
    asked = load_policy(plain, device="cpu", statistics="libero_spatial", kind="openvla_oft")
    assert isinstance(asked, OpenVLAOFT)
    assert asked.config.tokens == 56


def test_unknown_policies(tiny: OpenVLAOFT, tmp_path: Path) -> None:
    tiny.save(tmp_path / "policy")
    for wrong, message in (
        (
            "openvla_otf",
            "unknown policy 'openvla_otf', did you mean 'openvla_oft' or 'openvla'.; installed: .*openvla, ",
        ),
        ("nowhere:Policy", "policy.kind: cannot import 'nowhere:Policy'"),
        ("pathlib:Path", r"'pathlib:Path' is no treadle\.policies\.protocol\.Policy; derive it"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_policy(tmp_path / "policy", kind=wrong)
    path = tmp_path / "policy" / "config.json"
    config = json.loads(path.read_text())
    for change, message in (
        (
            {"treadle": {"policy": "pi0"}},
            r"config\.json: treadle\.policy: unknown policy 'pi0'; installed: .*openvla, ",
        ),
        ({"model_type": "llama", "treadle": {}}, r"model_type 'llama' and no treadle.policy; .*openvla, openvla_oft"),
    ):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_policy(tmp_path / "policy")


def test_every_policy_of_the_family_has_what_it_takes() -> None:
    installed = installed_policies()
    for made in (OpenVLA, OpenVLAOFT):
        assert installed[made.kind].load() is made is policy_class(made.kind)
        assert tiny_config(made.config_type, proprioception_dim=3).kind == made.kind
        assert sized_config(made.config_type, "200m", chunk=2).tokens == 14
    with pytest.raises(ConfigError, match="size: '13b'; allowed: tiny, 200m, 7b"):
        sized_config(OpenVLAConfig, "13b")
    assert isinstance(sized_config(OpenVLAConfig, "tiny"), OpenVLAConfig)
