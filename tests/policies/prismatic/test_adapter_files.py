"""Adapters' files: what peft writes is read as peft reads it or refused by name, and what is written every peft reads.

Reference values are those of peft's own `merge_and_unload`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from policy_samples import Official
from safetensors.torch import load_file, save_file
from torch import nn

from treadle.errors import CheckpointError
from treadle.policies import adapters, load_policy
from treadle.policies.adapter_config import FIELDS
from treadle.policies.load import examine_policy
from treadle.policies.prismatic.load import PARTS
from treadle.policies.prismatic.policy import PrismaticPolicy

LORA_CONFIG_0_11_1 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r"),
    *("target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_config", "megatron_core", "loftq_config", "use_dora", "layer_replication"),
}
"""Fields of `LoraConfig` in peft 0.11.1, the official code's pin."""
LAYERS = "language_model.model.layers"


class Main(nn.Module):
    """The published main weights of a policy, for peft to adapt."""

    def __init__(self, policy: PrismaticPolicy) -> None:
        super().__init__()
        for name in PARTS:
            self.add_module(name, getattr(policy, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def load(directory: Path, **options: Any) -> PrismaticPolicy:
    policy = load_policy(directory, device="cpu", statistics="libero_spatial", **options)
    assert isinstance(policy, PrismaticPolicy)
    return policy


def edit(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def write_adapter(official: Official, folder: Path, **settings: Any) -> Path:
    """An adapter with random matrices, as peft saves it."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
    model = peft.get_peft_model(Main(load(official.directory)), config)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    edit(folder, base_model_name_or_path=str(official.directory))
    return folder


def merged_by_peft(official: Official, adapter: Path) -> dict[str, torch.Tensor]:
    model = peft.PeftModel.from_pretrained(Main(load(official.directory)), str(adapter))  # pyright: ignore[reportArgumentType]
    return model.merge_and_unload().state_dict()


def main_state(policy: PrismaticPolicy) -> dict[str, torch.Tensor]:
    return {name: x for name, x in policy.state_dict().items() if name.partition(".")[0] in PARTS}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, 6),
        ({"rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 8}}, 6),
        ({"alpha_pattern": {"q_proj": 32, "layers.0.self_attn.v_proj": 1}}, 6),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"v_proj": 3}}, 6),
        ({"init_lora_weights": "gaussian"}, 6),
        ({"init_lora_weights": "orthogonal"}, 6),
        ({"target_modules": r".*layers\.[02].*(o_proj|up_proj)"}, 4),
        ({"target_modules": "all-linear"}, 58),
        ({"target_modules": ["q_proj", "fc1", "fc3", "proj", "lm_head"]}, 24),
        ({"layers_to_transform": [1]}, 2),
        ({"layers_to_transform": 0, "layers_pattern": "layers"}, 2),
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, 5),
        ({"fan_in_fan_out": True, "lora_dropout": 0.3}, 6),
    ],
)
def test_it_is_merged_as_peft_merges_it(official: Official, tmp_path: Path, settings: Any, changed: int) -> None:
    adapter = write_adapter(official, tmp_path / "adapter", **settings)
    found, expected = main_state(load(adapter)), merged_by_peft(official, adapter)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    base = main_state(load(official.directory))
    assert sum(not torch.equal(found[name], base[name]) for name in base) == changed


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora True; supported: false"),
        ({"bias": "all"}, "bias 'all'; supported: \"none\""),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights 'pissa'; supported: true, false, .* merge_and_unload"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save \['norm'\]; supported: null"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.lora_embedding_A is no adapter"),
    ],
)
def test_what_peft_makes_of_it_is_refused(official: Official, tmp_path: Path, settings: Any, message: str) -> None:
    adapter = write_adapter(official, tmp_path / "adapter", **settings)
    with pytest.raises(CheckpointError, match=message):
        load(adapter)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type 'IA3'; supported: \"LORA\""),
        ("lora_bias", True, "lora_bias True; supported: false"),
        ("layer_replication", [[0, 2]], r"layer_replication \[\[0, 2\]\]; supported: null"),
        ("a_later_feature", {"x": 1}, r"a_later_feature .*; supported: null"),
        ("a_later_feature", None, ""),
        ("r", True, "r True; it must be a number above 0"),
        ("lora_alpha", "8", "lora_alpha '8'; it must be a number above 0"),
        ("rank_pattern", {"q_proj": 0}, "rank_pattern .* numbers above 0 by regular expressions"),
        ("alpha_pattern", {"(": 1}, "alpha_pattern .* numbers above 0 by regular expressions"),
        ("rank_pattern", {"q_proj": 2}, r"q_proj\.lora_A\.weight has shape \[4, 16\], the config asks \[2, 16\]"),
        ("use_rslora", "yes", "use_rslora 'yes'; allowed: true, false"),
        ("target_modules", 3, "target_modules 3; it must be a list of names"),
        ("target_modules", "(", "target_modules: .*missing"),
        ("target_modules", ["q_proj"], "has adapters of layers that the config does not select .*v_proj"),
        ("target_modules", ["q_proj", "v_proj", "k_proj"], "lacks adapters of layers that the config selects .*k_proj"),
        ("exclude_modules", ["q_proj"], "has adapters of layers that the config does not select .*q_proj"),
        ("layers_to_transform", [1], "has adapters of layers that the config does not select"),
    ],
)
def test_every_key_counts(official: Official, tmp_path: Path, key: str, value: object, message: str) -> None:
    adapter = write_adapter(official, tmp_path / "adapter")
    edit(adapter, **{key: value})
    if not message:
        load(adapter)
        return
    with pytest.raises(CheckpointError, match=message):
        load(adapter)
    # Without loading any weights too.
    with pytest.raises(CheckpointError, match=message):
        examine_policy(adapter)


def test_a_copy_of_an_adapted_head_must_be_the_bases(official: Official, tmp_path: Path) -> None:
    """peft 0.11.1 saves the head beside its adapter."""
    adapter = write_adapter(official, tmp_path / "adapter")
    expected = main_state(load(adapter))
    file = adapter / adapters.ADAPTER_WEIGHTS
    head = load(official.directory).state_dict()["language_model.lm_head.weight"]
    save_file({**load_file(file), "base_model.model.language_model.lm_head.base_layer.weight": head.clone()}, file)
    found = main_state(load(adapter))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    save_file({**load_file(file), "base_model.model.language_model.lm_head.base_layer.weight": head + 1}, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.base_layer\.weight differs from the base's"):
        load(adapter)


def test_what_is_written_has_the_official_keys(official: Official, tmp_path: Path) -> None:
    """Read by peft 0.11.1 itself, such files gave the same merged weights, difference 0."""
    source = write_adapter(official, tmp_path / "a", rank_pattern={"v_proj": 8}, alpha_pattern={"layers.0.*": 1})
    policy = load(source, merge=False)
    policy.save(tmp_path / "saved", merge=False)
    written = tmp_path / "saved" / adapters.FOLDER
    config = json.loads((written / adapters.ADAPTER_CONFIG).read_text())
    assert config.keys() == LORA_CONFIG_0_11_1 == set(FIELDS)
    # Full names, for releases of peft differ in what a part of a name matches.
    assert config["rank_pattern"] == {f"{LAYERS}.{index}.self_attn.v_proj": 8 for index in range(3)}
    assert config["alpha_pattern"] == {f"{LAYERS}.0.self_attn.{name}_proj": 1 for name in "qv"}
    first, second = merged_by_peft(official, source), merged_by_peft(official, written)
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = main_state(load(tmp_path / "saved"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def beside(adapter: Path, folder: Path) -> None:
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (beside, r"adapter_config\.json: an adapter beside model\.safetensors\.index\.json.* lora_adapter/"),
        (
            lambda adapter, folder: shutil.copyfile(
                adapter / "adapter_model.safetensors", folder / "adapter_model.bin"
            ),
            r"adapter_model\.bin: an adapter beside model",
        ),
    ],
)
def test_an_adapter_beside_weights(
    official: Official, tmp_path: Path, spoil: Callable[[Path, Path], object], message: str
) -> None:
    adapter, folder = write_adapter(official, tmp_path / "adapter"), tmp_path / "policy"
    shutil.copytree(official.directory, folder)
    spoil(adapter, folder)
    for read in (load, examine_policy):
        with pytest.raises(CheckpointError, match=message):
            read(folder)


def test_a_folder_of_adapters_beside_weights_is_the_published_layout(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(official.directory, folder)
    write_adapter(official, folder / adapters.FOLDER)
    found, base = main_state(load(folder)), main_state(load(official.directory))
    assert all(torch.equal(found[name], base[name]) for name in base)
    remarks = [remark.text for remark in examine_policy(folder).remarks]
    assert any("lora_adapter/ lies beside main weights" in text for text in remarks)


def test_adapters_that_are_not_where_they_should_be(official: Official, tmp_path: Path) -> None:
    adapter = write_adapter(official, tmp_path / "adapter")
    on_top = write_adapter(official, tmp_path / "on_top")
    edit(on_top, base_model_name_or_path="../adapter")
    with pytest.raises(CheckpointError, match=r"the base '\.\./adapter' is an adapter too; merge that one first"):
        load(on_top)
    shutil.copytree(on_top, adapter / adapters.FOLDER)
    with pytest.raises(CheckpointError, match="adapters both in lora_adapter/ and beside it; leave one"):
        load(adapter)
    shutil.rmtree(adapter / adapters.FOLDER)
    (adapter / adapters.ADAPTER_WEIGHTS).rename(adapter / adapters.PICKLED)
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin: only adapter_model\.safetensors is read"):
        load(adapter)
