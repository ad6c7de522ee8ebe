"""What `treadle policy inspect` says, and finds wrong, without loading weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from policy_samples import Official, make_tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from treadle.cli import app
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
    # In float32: weight, gradient and two moments; adapters far less.
    assert found.memory_bytes.full == 4 * found.memory_bytes.acting + found.memory_bytes.further_sample
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


def test_the_command(tokenizer: Path, tmp_path: Path) -> None:
    make_tiny(tokenizer).save(tmp_path / "policy")
    result = CliRunner().invoke(
        app, ["policy", "inspect", str(tmp_path / "policy"), "--json", str(tmp_path / "x.json")]
    )
    assert result.exit_code == 0, result.output
    assert "2 of 3 dimensions, head: tokens" in result.output
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
