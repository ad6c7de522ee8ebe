"""Main weights and parts as other programs leave them: names, types, formats, and what is not used."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_samples import Official
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from treadle.errors import CheckpointError
from treadle.policies import load_policy
from treadle.policies.checkpoint import INDEX, WEIGHTS, read_weights
from treadle.policies.load import examine_policy
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.sampling import Sampling
from treadle.policies.tensors import wrapped

Tensors = dict[str, torch.Tensor]
HEAD = "action_head--150000_checkpoint.pt"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def folder(official: Official, tmp_path: Path) -> Path:
    """A copy of the official checkpoint, its main weights in one file."""
    target = tmp_path / "policy"
    shutil.copytree(official.directory, target, ignore=shutil.ignore_patterns("model*", "images", "expected*"))
    write(target, read_weights(official.directory))
    return target


def write(folder: Path, tensors: Tensors) -> None:
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    write(folder, change(tensors))


def edit_part(folder: Path, change: Callable[[Tensors], Tensors], name: str = HEAD) -> None:
    torch.save(change(torch.load(folder / name, weights_only=True)), folder / name)


def load(folder: Path, **options: Any) -> PrismaticPolicy:
    policy = load_policy(folder, device="cpu", statistics="libero_spatial", **options)
    assert isinstance(policy, PrismaticPolicy)
    return policy


def act(policy: PrismaticPolicy, official: Official) -> torch.Tensor:
    frames = official.frames(0, policy.config.cameras or 2)
    inputs = policy.prepare(frames, ["lift the ball"], np.zeros((1, 8), np.float32))
    return policy.act(inputs, Sampling(temperature=0)).actions


def test_what_wrappers_leave_in_front_of_names() -> None:
    assert wrapped(["module._orig_mod.a", "module._orig_mod.b.module.c"]) == "module._orig_mod."
    assert wrapped(["_orig_mod.module.a"]) == "_orig_mod.module."
    assert wrapped(["module.a", "b"]) == ""
    assert wrapped([]) == ""


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_wrappers_are_taken_off(official: Official, folder: Path, tmp_path: Path, prefix: str) -> None:
    edit(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    edit_part(folder, lambda tensors: {prefix + name.removeprefix("module."): x for name, x in tensors.items()})
    policy = load(folder)
    assert torch.equal(act(policy, official), act(load(official.directory), official))
    policy.save(tmp_path / "saved")
    # The official loader takes `module.` off, and nothing else.
    kept = "module." if prefix.startswith("module.") else ""
    names = torch.load(tmp_path / "saved" / HEAD, weights_only=True).keys()
    assert {name.removeprefix(kept) for name in names} == {f"{name}" for name in policy.action_head.state_dict()}  # type: ignore[union-attr]
    assert all(name.startswith(kept) for name in names)
    assert read_weights(tmp_path / "saved").keys() == read_weights(official.directory).keys()


def test_buffers_of_older_transformers_are_left_out(official: Official, folder: Path) -> None:
    layer = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda tensors: {**tensors, layer: torch.ones(4)})
    assert torch.equal(act(load(folder), official), act(load(official.directory), official))


def test_a_value_head_of_another_program(official: Official, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, lambda tensors: {**tensors, "value_head.mlp.0.weight": torch.zeros(4, 16)})
    policy = load(folder)
    assert policy.value_outputs == 0
    assert "value_head.mlp.0.weight and 0 more in the main weights are a value head" in caplog.text
    assert torch.equal(act(policy, official), act(load(official.directory), official))


def published_head(width: int, outputs: int, layers: tuple[str, str, str]) -> Tensors:
    """A value head as published code lays it out, by `nn.Sequential` or with names, and without a last bias."""
    generator = torch.Generator().manual_seed(1)
    sizes = (width, 16, 4, outputs)
    head: Tensors = {}
    for index, layer in enumerate(layers):
        head[f"value_head.{layer}.weight"] = torch.randn(sizes[index + 1], sizes[index], generator=generator)
        if index < 2:
            head[f"value_head.{layer}.bias"] = torch.randn(sizes[index + 1], generator=generator)
    return head


@pytest.mark.parametrize("outputs", [1, 8])
@pytest.mark.parametrize("layers", [("mlp.0", "mlp.2", "mlp.4"), ("head_l1", "head_l2", "head_l3")])
def test_a_value_head_among_the_main_weights_is_read(
    official: Official, folder: Path, tmp_path: Path, outputs: int, layers: tuple[str, str, str]
) -> None:
    width = load(official.directory).width
    head = published_head(width, outputs, layers)
    edit(folder, lambda tensors: {**tensors, **head})
    policy = load(folder)
    assert policy.value_outputs == outputs
    assert any("value head among the main weights is used" in remark.text for remark in examine_policy(folder).remarks)
    inputs = policy.prepare(official.frames(0, 2), ["lift the ball"], np.zeros((1, 8), np.float32))
    hidden = policy.hidden_states(inputs, reads=1)[:, 0]
    expected = hidden
    for index, layer in enumerate(layers):
        expected = F.linear(expected, head[f"value_head.{layer}.weight"], head.get(f"value_head.{layer}.bias"))
        expected = F.gelu(expected) if index < 2 else expected
    values = policy.values(inputs)
    torch.testing.assert_close(values, expected)
    assert torch.equal(act(policy, official), act(load(official.directory), official))
    # It is written as Treadle's own, and is none of the main weights.
    policy.save(tmp_path / "saved")
    assert not any(name.startswith("value_head.") for name in read_weights(tmp_path / "saved"))
    again = load(tmp_path / "saved")
    assert policy.value_head is not None
    assert again.value_head is not None
    assert all(
        torch.equal(x, again.value_head.state_dict()[name]) for name, x in policy.value_head.state_dict().items()
    )
    torch.testing.assert_close(again.values(inputs), values)
    assert load(folder, value_outputs=0).value_head is None


def test_a_value_head_that_does_not_fit_is_not_read(
    official: Official, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    width = load(official.directory).width
    edit(folder, lambda tensors: {**tensors, **published_head(width, 3, ("mlp.0", "mlp.2", "mlp.4"))})
    assert load(folder).value_head is None
    assert "value_head.mlp.0.bias and 4 more in the main weights are a value head" in caplog.text


@pytest.mark.parametrize(
    "single",
    [
        lambda name: name.startswith("vision"),
        lambda name: "norm" in name,
        lambda name: name.startswith("projector"),
        lambda name: "embed_tokens" in name,
        lambda name: name == "projector.fc1.bias",
    ],
)
@pytest.mark.parametrize("kind", ["openvla", "openvla_oft"])
def test_weights_of_several_types_get_that_of_most_numbers(
    official: Official, folder: Path, caplog: pytest.LogCaptureFixture, single: Callable[[str], bool], kind: str
) -> None:
    def half(tensors: Tensors) -> Tensors:
        return {name: x if single(name) else x.bfloat16() for name, x in tensors.items()}

    edit(folder, half)
    policy = load(folder, kind=kind)
    types = {x.dtype for name, x in policy.named_parameters() if not name.startswith("action_scale")}
    assert types == {torch.bfloat16}
    assert "tensors of several types" in caplog.text
    assert "all become bfloat16" in caplog.text
    assert act(policy, official).isfinite().all()
    caplog.clear()
    assert {x.dtype for x in load(folder, kind=kind, dtype="float32").parameters()} == {torch.float32}
    assert "several types" not in caplog.text
    assert examine_policy(folder).dtype == "bfloat16"


def test_a_part_gets_the_type_of_the_weights(official: Official, folder: Path) -> None:
    expected = act(load(official.directory, dtype="bfloat16"), official)
    edit(folder, lambda tensors: {name: x.bfloat16() for name, x in tensors.items()})
    policy = load(folder)
    assert {x.dtype for x in policy.action_head.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert torch.equal(act(policy, official), expected)


def quantise(folder: Path) -> None:
    edit(folder, lambda tensors: {**tensors, NORM: tensors[NORM].to(torch.int8)})


def to_float8(folder: Path) -> None:
    edit(folder, lambda tensors: {**tensors, NORM: tensors[NORM].to(torch.float8_e4m3fn)})


def part_of_codes(folder: Path) -> None:
    edit_part(folder, lambda tensors: {name: x.to(torch.int32) for name, x in tensors.items()})


def say_quantised(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"quantization_config": {"quant_method": "bitsandbytes"},', 1))


def shards_too(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {}}')


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def unmerged(folder: Path) -> None:
    edit(folder, lambda tensors: {**tensors, "language_model.lm_head.lora_A.default.weight": torch.zeros(4, 16)})


def cut(folder: Path) -> None:
    edit(folder, lambda tensors: {name: x for name, x in tensors.items() if name != NORM})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (quantise, rf"model\.safetensors: {NORM} has type I8; allowed are F64, F32, BF16, F16. Quantised weights"),
        (to_float8, rf"{NORM} has type F8_E4M3; allowed are"),
        (part_of_codes, r"action_head--150000_checkpoint\.pt: .*has type torch\.int32; allowed are"),
        (say_quantised, r"config\.json: quantization_config: found .*bitsandbytes.*null \(quantised weights cannot"),
        (shards_too, r"both model\.safetensors and model\.safetensors\.index\.json.* transformers would read model"),
        (pickled, r"weights as pytorch_model\.bin; only safetensors files are read. Convert them"),
        (unmerged, "1 surplus: language_model.lm_head.lora_A.* adapters are not merged into these weights"),
        (cut, f"1 missing: {NORM}; config.json and weights must be of one checkpoint"),
    ],
)
def test_weights_that_cannot_be_used(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    for read in (load, examine_policy):
        with pytest.raises(CheckpointError, match=message):
            read(folder)


def test_a_head_of_tokens_that_was_never_trained(official: Official, caplog: pytest.LogCaptureFixture) -> None:
    load(official.directory)
    assert not caplog.records
    load(official.directory, head="tokens")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name.startswith("treadle.")
    assert "action_head--150000_checkpoint.pt is not used, and tokens decide instead" in record.getMessage()
