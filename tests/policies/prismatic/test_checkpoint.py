import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_samples import Official, make_tiny, sample_inputs
from safetensors.torch import load_file, save_file

from treadle.data.noise import noise_key
from treadle.errors import CheckpointError, ConfigError, OutputError
from treadle.policies import checkpoint, load_policy
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.sampling import Sampling


@pytest.fixture
def saved(tiny: OpenVLAOFT, tmp_path: Path) -> Path:
    tiny.save(tmp_path / "policy")
    return tmp_path / "policy"


def test_round_trip_is_bit_for_bit(tiny: OpenVLAOFT, saved: Path, tmp_path: Path) -> None:
    policy = load_policy(saved, device="cpu")
    assert isinstance(policy, OpenVLAOFT)
    expected = tiny.state_dict()
    assert policy.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in policy.state_dict().items())
    keys = noise_key(np.arange(3))
    first, second = (p.act(sample_inputs(p, 3), Sampling(), keys) for p in (tiny, policy))
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.log_probs, second.log_probs)
    policy.save(tmp_path / "again")
    names = sorted(path.name for path in saved.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_published_layout_is_kept(official: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 2_100_000)
    load_policy(official.directory, device="cpu", statistics="libero_spatial").save(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / checkpoint.INDEX).read_text())
    published = json.loads((official.directory / checkpoint.INDEX).read_text())
    assert index["weight_map"].keys() == published["weight_map"].keys()
    assert len(set(index["weight_map"].values())) > 1
    before, after = (checkpoint.read_weights(folder) for folder in (official.directory, tmp_path / "saved"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    original = json.loads((official.directory / "config.json").read_text())
    assert {key: config[key] for key in original if key != "norm_stats"} == {
        key: value for key, value in original.items() if key != "norm_stats"
    }
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (official.directory / name).read_bytes()
    again = load_policy(tmp_path / "saved", device="cpu", statistics="libero_spatial")
    assert isinstance(again, OpenVLAOFT)
    assert again.proprio_projector is not None


def test_dtype_and_overrides(saved: Path) -> None:
    policy = load_policy(saved, device="cpu", dtype="bfloat16", prompt_length=50)
    assert isinstance(policy, OpenVLAOFT)
    assert policy.language_model.lm_head.weight.dtype == torch.bfloat16
    decision = policy.act(sample_inputs(policy, 2), Sampling())
    assert decision.log_probs.dtype == torch.float32
    assert decision.values is not None
    assert decision.values.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"'int8'; allowed: auto, float32"):
        load_policy(saved, dtype="int8")


def test_statistics_in_a_file_replace_those_in_the_config(official: Official) -> None:
    with pytest.raises(
        CheckpointError, match=r"dataset_statistics\.json: no statistics 'bridge_orig'; there are: libero_o"
    ):
        load_policy(official.directory, statistics="bridge_orig")


def _edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


NORM = "language_model.model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "policy: no such directory"),
        (lambda d: (d / "config.json").unlink(), r"config\.json: missing; the directory has: dataset_statistics\.json"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json: not valid JSON"),
        (lambda d: (d / "config.json").write_text('{"model_type": "gpt"}'), "'gpt' and no treadle.policy; none of"),
        (lambda d: (d / "config.json").write_text('{"model_type": "openvla"}'), "no 'text_config'"),
        (lambda d: (d / "dataset_statistics.json").write_text("{}"), "no statistics of any data set"),
        (lambda d: (d / "tokenizer.json").unlink(), r"tokenizer\.json: missing"),
        (lambda d: (d / "tokenizer.json").write_text("?"), r"tokenizer\.json: not readable as a tokenizer"),
        (lambda d: (d / "preprocessor_config.json").unlink(), r"preprocessor_config\.json: missing"),
        (lambda d: (d / "preprocessor_config.json").write_text("{}"), "no 'image_resize_strategy'; it must be given"),
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors: missing; the directory has:"),
        (lambda d: (d / "value_head.safetensors").unlink(), r"value_head\.safetensors: missing"),
        (lambda d: (d / "proprio_projector.safetensors").unlink(), r"proprio_projector\.safetensors: missing"),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-99]),
            r"model\.safetensors .*not readable as safetensors",
        ),
        (lambda d: _edit_tensors(d / "model.safetensors", lambda t: t.pop(NORM)), f"1 missing: {NORM}"),
        (lambda d: _edit_tensors(d / "model.safetensors", lambda t: t.update(x=torch.ones(1))), "1 surplus: x"),
        (
            lambda d: _edit_tensors(d / "model.safetensors", lambda t: t.update({NORM: torch.ones(5)})),
            rf"{NORM} has shape \[5\], the config asks \[32\]",
        ),
        (
            lambda d: (d / "vision_backbone--1_checkpoint.pt").touch(),
            "checkpoint.pt: not readable as a file of tensors",
        ),
        (lambda d: (d / "noisy_action_projector--1_checkpoint.pt").touch(), "a diffusion head; supported are"),
    ],
)
def test_spoilt_directories(saved: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(saved)
    with pytest.raises(CheckpointError, match=message):
        load_policy(saved, device="cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("timm_model_ids", ["resnet18"], "'resnet18'; known: treadle_conv"),
        ("treadle_tower_overrides", {"featurizer": {"depht": 3}}, "treadle_tower_overrides of treadle_conv: .*depht"),
        ("treadle_tower_overrides", {"featurizer": {"widths": [10**30]}}, r"featurizer\.widths\[0\]: found 1000"),
        ("treadle_tower_overrides", {"featurizer": {"widths": 4}}, "treadle_tower_overrides of treadle_conv"),
        ("n_action_bins", 128, "n_action_bins: found 128; allowed: 256"),
        ("treadle", {"chonk": 3}, "'treadle'.*chonk"),
        ("treadle", {"action_dim": 4}, "action_dim 4, but the statistics have 3"),
    ],
)
def test_configs_that_do_not_fit(saved: Path, key: str, value: object, message: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=message):
        load_policy(saved, device="cpu")


def test_shards_and_index_must_agree(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(official.directory, folder)
    index = json.loads((folder / checkpoint.INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"00001-of-00003.*1 missing: ghost"):
        load_policy(folder, statistics="libero_spatial")
    del index["weight_map"]["ghost"]
    (folder / checkpoint.INDEX).write_text(json.dumps(index))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors: missing; the directory has: "):
        load_policy(folder, statistics="libero_spatial")


def test_a_corrupt_pt_file(official: Official, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(official.directory, folder)
    (folder / "proprio_projector--150000_checkpoint.pt").write_bytes(b"not torch")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not readable as a file of tensors"):
        load_policy(folder, statistics="libero_spatial")


def test_a_full_disk_leaves_the_old_checkpoint(tokenizer: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"policy: cannot write the checkpoint: .*No space left"):
        make_tiny(tokenizer, layers=2).save(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]


def test_saving_replaces_a_checkpoint_and_nothing_else(tokenizer: Path, saved: Path, tmp_path: Path) -> None:
    other = make_tiny(tokenizer, value_outputs=0)
    other.save(saved)
    assert not (saved / "value_head.safetensors").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]
    (tmp_path / "diary").mkdir()
    np.save(tmp_path / "diary" / "x.npy", np.zeros(1))
    with pytest.raises(OutputError, match="diary: taken by something that is not a checkpoint"):
        other.save(tmp_path / "diary")
    with pytest.raises(OutputError, match="cannot write"):
        other.save(saved / "config.json" / "below")
