"""What of a published config.json is used, refused and ignored, and how options are checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_samples import Official
from transformers import LlamaConfig

from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT, OpenVLAOFTConfig
from treadle.policies.prismatic.published import read_published


def raw(official: Official) -> dict[str, Any]:
    config = json.loads((official.directory / "config.json").read_text())
    del config["norm_stats"]
    return config


def link(source: Path, folder: Path, *without: str) -> Path:
    """A directory with the files of another, which are not written to."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in without:
            (folder / path.name).symlink_to(path)
    return folder


def test_defaults_are_transformers(official: Official) -> None:
    config = raw(official)
    _, text = read_published(config, "config.json")
    mine, theirs = LlamaConfig(**text.llama()), LlamaConfig(**config["text_config"])
    known = set(text.llama())
    assert {key: getattr(mine, key) for key in known} == {key: getattr(theirs, key) for key in known}
    assert mine.head_dim == theirs.head_dim
    assert mine.num_key_value_heads == theirs.num_key_value_heads


def test_what_is_ignored_changes_nothing(official: Official) -> None:
    config = raw(official)
    _, text = read_published(config, "config.json")
    notes = {"torch_dtype": "bfloat16", "dtype": "float16", "_attn_implementation": "flash_attention_2"}
    notes |= {"_name_or_path": "x", "transformers_version": "4.40.1", "use_cache": False, "architectures": None}
    notes |= {"attn_implementation": "flash_attention_2", "top_p": 0.1}
    config |= {**notes, "auto_map": {}, "vision_backbone_id": "x", "llm_max_length": 1, "tie_word_embeddings": True}
    config["text_config"] |= notes
    assert read_published(config, "config.json")[1].llama() == text.llama()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("eos_token_id", [5, 7], ("eos_token_id", 5)),
        ("eos_token_id", None, ("eos_token_id", 2)),
        ("rope_theta", 5e5, ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5})),
        ("rope_scaling", {"rope_type": "default"}, ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4})),
        ("rope_parameters", {"rope_theta": 9.0}, ("rope_parameters", {"rope_type": "default", "rope_theta": 9.0})),
        ("head_dim", 8, ("head_dim", 8)),
        ("rms_norm_eps", 1e-5, ("rms_norm_eps", 1e-5)),
    ],
)
def test_what_is_used_of_the_language_model(
    official: Official, key: str, value: object, expected: tuple[str, object]
) -> None:
    config = raw(official)
    config["text_config"][key] = value
    assert read_published(config, "config.json")[1].llama()[expected[0]] == expected[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type: found \"qwen2\"; allowed: 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act: found \"gelu\"; allowed: 'silu' or 'swish'"),
        ({"sliding_window": 8}, "sliding_window: found 8; allowed: null"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            r'rope_scaling\.type: found "linear"; allowed: \'default',
        ),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, r"rope_theta: found \[5\.0, 6\.0\]; leave one"),
        ({"attention_bias": True}, "attention_bias: found true; allowed: False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: found true"),
        ({"attention_dropout": 0.1}, r"attention_dropout: found 0\.1"),
        ({"hidden_size": "16"}, 'hidden_size: found "16"; allowed: a valid integer'),
        ({"hidden_size": 15}, "hidden_size 15: num_attention_heads 2 must divide it"),
        ({"num_key_value_heads": 3}, "num_attention_heads 2: num_key_value_heads 3 must"),
        ({"num_hidden_layers": True}, "num_hidden_layers: found true"),
        ({"vocab_size": 300}, "vocab_size: found 300; allowed: above 320"),
        ({"vocab_size": None}, "vocab_size: found null"),
        ({"eos_token_id": [40000]}, "eos_token_id: found 40000; allowed: below vocab_size 32064"),
        ({"pad_token_id": 0}, "pad_token_id: found 0; allowed: pad_token_id 32000"),
        ({"num_experts": 8}, "unknown key 'num_experts': found 8; remove it if the policy does not depend on it"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: found"),
    ],
)
def test_language_models_that_are_not_supported(official: Official, changes: dict[str, Any], message: str) -> None:
    config = raw(official)
    config["text_config"] |= changes
    with pytest.raises(CheckpointError, match=rf"^config\.json: text_config[:.] ?{message}"):
        read_published(config, "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "text_config: found null; allowed: an object"),
        ({"image_sizes": []}, r"image_sizes: found \[\]"),
        ({"image_sizes": [224]}, r"image_sizes: found \[224\]; allowed: a size for each of"),
        ({"image_sizes": [224, 384]}, r"image_sizes: found \[224, 384\]; allowed: the same size"),
        ({"image_sizes": [224, "224"]}, r'image_sizes\[1\]: found "224"; allowed: a valid integer'),
        ({"pad_to_multiple_of": None}, "pad_to_multiple_of: found null; allowed: a valid integer"),
        ({"pad_token_id": 32064}, "pad_token_id: found 32064; allowed: below text_config.vocab_size 32064"),
        ({"timm_model_ids": "vit"}, 'timm_model_ids: found "vit"; allowed: a valid list'),
        ({"timm_model_ids": ["a", "b", "c"]}, "timm_model_ids: found"),
        ({"timm_model_ids": ["vit_so400m_patch14_siglip_224"]}, "use_fused_vision_backbone: found true; timm"),
        ({"timm_override_act_layers": ["quick_gelu", None]}, r'timm_override_act_layers\[0\]: found "quick_gelu"'),
        ({"arch_specifier": "no-align+linear"}, "arch_specifier: found"),
        ({"image_resize_strategy": "crop"}, "image_resize_strategy: found \"crop\"; allowed: 'resize-naive', 'lett"),
        ({"llm_backbone_id": "mistral-v0.1-7b-pure"}, "llm_backbone_id: found"),
        ({"llm_backbone_id": "vicuna-v15-7b"}, "llm_backbone_id: found 'vicuna-v15-7b' beside hf_llm_id 'meta-llama"),
        ({"hf_llm_id": "lmsys/vicuna-7b-v1.5"}, "llm_backbone_id: found 'llama2-7b-pure' beside hf_llm_id 'lmsys"),
        ({"n_action_bins": "256"}, 'n_action_bins: found "256"; allowed: 256'),
        ({"treadle_tower_overrides": None}, "treadle_tower_overrides: found null"),
        ({"mixture_of_experts": True}, "unknown key 'mixture_of_experts': found true"),
    ],
)
def test_configs_that_are_not_supported(official: Official, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: {message}"):
        read_published({**raw(official), **changes}, "config.json")


def test_one_size_is_that_of_both_towers(official: Official) -> None:
    found, _ = read_published({**raw(official), "image_sizes": 224}, "config.json")
    assert found.sizes == [224, 224]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"center_crop": True}, r"center_crop: found true; allowed: a valid number \(the share .*0\.9 as published"),
        ({"center_crop": "0.9"}, r'center_crop: found "0\.9"'),
        ({"center_crop": 0}, "center_crop: found 0; allowed: greater than 0"),
        ({"center_crop": float("nan")}, "center_crop: found NaN"),
        ({"chunk": "5"}, 'chunk: found "5"; allowed: a valid integer'),
        ({"chunk": 2.5}, r"chunk: found 2\.5"),
        ({"chunk": -1}, "chunk: found -1; allowed: greater than 0"),
        ({"chunk": 0}, "chunk: found 0"),
        ({"chunk": None}, "chunk: found null"),
        ({"normalization": "bounds_q99"}, "normalization: found \"bounds_q99\"; allowed: 'quantiles' or 'bounds'"),
        ({"head": "l1"}, "head: found \"l1\"; allowed: 'tokens', 'laplace' or 'gaussian'"),
        ({"initial_scale": 0}, "initial_scale: found 0; allowed: greater than 0"),
        ({"prompt_length": [64]}, "prompt_length: found"),
        ({"proprioception_dim": -8}, "proprioception_dim: found -8"),
        ({"film": "no"}, 'film: found "no"; allowed: a valid boolean'),
        ({"value_hidden": [0]}, r"value_hidden\[0\]: found 0"),
    ],
)
def test_options_are_typed(official: Official, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^policy\.options\.{message}"):
        load_policy(official.directory, device="cpu", statistics="libero_spatial", **settings)


def test_own_facts_are_typed(official: Official, tmp_path: Path) -> None:
    folder = link(official.directory, tmp_path / "copy", "config.json")
    for facts, message in (
        ({"policy": "openvla_oft", "chunk": "8"}, r"key 'treadle': chunk: found \"8\"; allowed: a valid integer"),
        (None, "treadle: found null; allowed: an object"),
        ({"policy": 3}, "treadle: found"),
    ):
        (folder / "config.json").write_text(json.dumps({**raw(official), "treadle": facts}))
        with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
            load_policy(folder, device="cpu", statistics="libero_spatial")


def test_options_may_be_lists(official: Official) -> None:
    policy, _ = OpenVLAOFT.skeleton(official.directory, "libero_spatial", value_hidden=[4, 2], center_crop=1)
    assert isinstance(policy.config, OpenVLAOFTConfig)
    assert policy.config.value_hidden == (4, 2)


def _renamed(name: str, dimensions: int = 7) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def edit(stats: dict[str, Any]) -> dict[str, Any]:
        entry = stats["libero_spatial_no_noops"]
        lists = {key: (value * 2)[:dimensions] for key, value in entry["action"].items()}
        return {name: {**entry, "action": lists}}

    return edit


@pytest.mark.parametrize(
    ("name", "dimensions", "expected"),
    [
        ("libero_goal_no_noops", 7, (8, "quantiles")),
        ("bridge_orig", 7, (5, "quantiles")),
        ("aloha_fold_shirt", 14, (25, "bounds")),
        ("robotwin_lift_pot", 14, (25, "bounds")),
        ("my_robot", 7, (8, "quantiles")),
    ],
)
def test_official_constants_go_by_the_data_set(
    official: Official, tmp_path: Path, name: str, dimensions: int, expected: tuple[int, str]
) -> None:
    folder = link(official.directory, tmp_path / "copy", "dataset_statistics.json")
    stats = json.loads((official.directory / "dataset_statistics.json").read_text())
    (folder / "dataset_statistics.json").write_text(json.dumps(_renamed(name, dimensions)(stats)))
    policy, found = OpenVLAOFT.skeleton(folder, None, head="tokens")
    assert (policy.chunk, policy.config.normalization) == expected
    line = OpenVLAOFT.conventions(found, policy.config)["constants"]
    assert line.startswith(f"chunk {expected[0]}, {expected[1]}: ")
    assert repr(name) in line


def test_nan_proprioception(official: Official) -> None:
    policy = load_policy(official.directory, device="cpu", statistics="libero_spatial")
    state = torch.zeros(2, 8).numpy()
    state[1, 3] = float("nan")
    frames = [frame.repeat(2, axis=0) for frame in official.frames(0, 2)]
    with pytest.raises(ConfigError, match="proprioception: number 3 of sample 1 is nan; it must be finite"):
        policy.prepare(frames, ["a", "b"], state)
