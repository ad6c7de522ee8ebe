"""What `treadle policy inspect` says, and finds wrong, without loading weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_samples import Official, make_tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from treadle.cli import app
from treadle.commands.policy import next_commands
from treadle.config.schema import LoadingConfig
from treadle.errors import CheckpointError
from treadle.policies import load_policy
from treadle.policies.load import examine_policy


def test_a_published_directory(official: Official) -> None:
    found = examine_policy(official.directory)
    assert found.policy == "openvla_oft"
    assert (found.settings["chunk"], found.settings["head"], found.settings["proprioception_dim"]) == (8, "laplace", 8)
    assert found.statistics == {"libero_object_no_noops": 7, "libero_spatial_no_noops": 7}
    assert found.files == 3
    files = sum(path.stat().st_size for path in official.directory.glob("*.safetensors"))
    assert 0.99 * files < found.stored_bytes < files
    policy = load_policy(official.directory, statistics="libero_spatial", device="cpu")
    assert isinstance(policy, torch.nn.Module)
    assert sum(found.parameters.values()) == sum(p.numel() for p in policy.parameters())
    assert found.memory_bytes.acting == 4 * sum(found.parameters.values())
    # In float32: weight, and of what is trained a gradient and two moments.
    trained = count_trained(policy)
    assert found.memory_bytes.full == 4 * policy_size(policy) + 12 * trained + found.memory_bytes.further_sample
    assert found.memory_bytes.acting < found.memory_bytes.lora


def test_what_would_keep_it_from_loading(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(official.directory, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 40064
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json: 32000 tokens, 32001 with .*vocab_size 40064, of .* 40000 are"
    ):
        load_policy(folder, statistics="libero_spatial")
    config["text_config"] |= {"vocab_size": 32064, "hidden_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has shape \[\d+, 16\], the config asks \[\d+, 32\]|has shape \[16"):
        examine_policy(folder)


def policy_size(policy: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in policy.parameters())


def count_trained(policy: Any) -> int:
    """Without the parts of the towers that are stored and never used."""
    return policy_size(policy) - sum(parameter.numel() for parameter in policy.unused())


def test_memory_by_hand(official: Official) -> None:
    """float32: weight, gradient and two moments. Below it a master too, 16 bytes for each parameter that is trained,
    and for a moment a float32 copy of its gradient.
    """
    policy = load_policy(official.directory, statistics="libero_spatial", device="cpu")
    trained = count_trained(policy)
    found = examine_policy(official.directory)
    count = sum(found.parameters.values())
    full = found.training_bytes["full"]
    assert (full["weights"], full["gradients"], full["float32 master"], full["AdamW moments"]) == (
        4 * count,
        4 * trained,
        0,
        8 * trained,
    )
    half = examine_policy(official.directory, LoadingConfig(dtype="bfloat16"))
    full = half.training_bytes["full"]
    scale = sum(parameter.numel() for parameter in policy.action_scale.parameters())
    assert full["copies of gradients at the step"] == 2 * (trained - scale)
    # The scale of the density stays float32.
    assert sum(full.values()) == 2 * count + 16 * trained + scale * (2 + 2 - 4 - 2)
    lora = half.training_bytes["lora"]
    assert sum(lora.values()) == half.memory_bytes.lora
    beside = sum(x for part, x in found.parameters.items() if part.startswith(("action", "proprio"))) - scale
    assert lora["weights"] == 2 * count + 2 * scale
    # Heads and projectors in files of their own are trained in the policy's type, adapters in float32.
    assert lora["gradients"] == lora["adapters"] + 2 * beside + 4 * scale
    assert lora["float32 master"] == 4 * beside
    assert lora["AdamW moments"] == 2 * lora["adapters"] + 8 * (beside + scale)


def test_settings_and_next_commands(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "a folder whose name is far longer than a line of any terminal should be, and has spaces"
    shutil.copytree(official.directory, folder)
    settings = ["policy.statistics=libero_spatial", "policy.options.head=tokens"]
    result = CliRunner().invoke(app, ["policy", "inspect", str(folder), *settings], env={"COLUMNS": "40"})
    assert result.exit_code == 0, result.output
    # Lines to copy are whole, however narrow the terminal.
    train = f"treadle train one-gpu/libero-spatial-grpo policy.checkpoint='{folder}'"
    assert f"{train} {' '.join(settings)}\n" in result.output
    words = " ".join(result.output.split())
    assert "action_head--150000_checkpoint.pt is not used" in words
    assert "\u2026" not in result.output
    result = CliRunner().invoke(app, ["policy", "inspect", str(folder), "policy.options.hed=tokens"])
    assert result.exit_code == 2
    both = next_commands(examine_policy(folder))
    protocols = [command.partition(" --protocol ")[2].split()[0] for command in both if " --protocol " in command]
    assert protocols == ["openvla-oft/libero-object", "openvla-oft/libero-spatial"]


def test_commands_where_no_recipe_fits(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(official.directory, folder)
    statistics = json.loads((folder / "dataset_statistics.json").read_text())
    renamed = dict(zip(("libero_kitchen", "our_lab"), statistics.values(), strict=True))
    (folder / "dataset_statistics.json").write_text(json.dumps(renamed))
    assert next_commands(examine_policy(folder)) == [
        f"treadle eval {folder} simulator.name=libero policy.statistics=libero_kitchen",
        f"treadle eval {folder} simulator.name=NAME policy.statistics=our_lab",
    ]


def test_numbers_that_are_not_finite(tokenizer: Path, tmp_path: Path) -> None:
    make_tiny(tokenizer).save(tmp_path / "policy")
    assert not examine_policy(tmp_path / "policy").not_finite
    weights = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(weights)
    tensors["language_model.model.norm.weight"][[3, 5]] = torch.tensor([float("nan"), float("inf")])
    save_file(tensors, weights)
    head = tmp_path / "policy" / "value_head.safetensors"
    parts = load_file(head)
    next(iter(parts.values())).fill_(float("-inf"))
    save_file(parts, head)
    found = examine_policy(tmp_path / "policy").not_finite
    assert found["model.safetensors: language_model.model.norm.weight"] == 2
    assert len(found) == 2
    report = tmp_path / "x.json"
    result = CliRunner().invoke(app, ["policy", "inspect", str(tmp_path / "policy"), "--json", str(report)])
    assert result.exit_code == 2
    assert "2 numbers of model.safetensors" in result.output
    assert "2 tensors with numbers that are not finite" in result.stderr
    assert json.loads(report.read_text())["not_finite"] == found


def test_parts_are_checked_too(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(official.directory, folder)
    path = folder / "action_head--150000_checkpoint.pt"
    tensors = torch.load(path, weights_only=True)
    name = next(name for name in tensors if name.endswith("fc2.bias"))
    torch.save({**tensors, name: torch.zeros(3)}, path)
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.pt: model\.fc2\.bias has shape \[3\], the config asks \[7\]"
    ):
        examine_policy(folder)


def test_files_that_are_not_used_are_named(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(official.directory, folder)
    shutil.copyfile(folder / "model-00001-of-00003.safetensors", folder / "model-00001-of-00004.safetensors")
    texts = [remark.text for remark in examine_policy(folder).remarks]
    assert texts == ["not used: model-00001-of-00004.safetensors"]


def test_the_command(tokenizer: Path, tmp_path: Path) -> None:
    make_tiny(tokenizer).save(tmp_path / "policy")
    result = CliRunner().invoke(
        app, ["policy", "inspect", str(tmp_path / "policy"), "--json", str(tmp_path / "x.json")]
    )
    assert result.exit_code == 0, result.output
    assert "2 per decision, of 3 dimensions each" in result.output
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["policy"] == "openvla_oft"
    # Its statistics are the tabletop's.
    assert "quickstart" in report["recipes"]
    weights = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("language_model.model.norm.weight")
    save_file(tensors, weights)
    result = CliRunner().invoke(app, ["policy", "inspect", str(tmp_path / "policy")])
    assert result.exit_code == 2


def test_saved_shards_are_the_published_ones(official: Official, tmp_path: Path) -> None:
    policy = load_policy(official.directory, statistics="libero_spatial", device="cpu")
    policy.save(tmp_path / "saved")
    shards = sorted(official.directory.glob("*.safetensors"))
    assert len(shards) == 3
    for path in shards:
        before, after = load_file(path), load_file(tmp_path / "saved" / path.name)
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )


def test_weights_are_mapped_from_their_file(tokenizer: Path, tmp_path: Path) -> None:
    """Untrained tensors are the file's pages, which the system can drop and read again; training never writes there."""
    make_tiny(tokenizer).save(tmp_path / "policy")
    file = tmp_path / "policy" / "model.safetensors"
    policy = load_policy(tmp_path / "policy", device="cpu")
    assert isinstance(policy, torch.nn.Module)
    if not Path("/proc/self/maps").is_file():
        pytest.skip("needs /proc")
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    address = dict(policy.named_parameters())["language_model.lm_head.weight"].data_ptr()
    assert any(start <= address < end for start, end in spans)
    content = file.read_bytes()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1)
    assert file.read_bytes() == content
