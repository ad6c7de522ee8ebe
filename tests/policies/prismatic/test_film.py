"""Towers modulated by the instruction. Blocks and names were compared with the official wrapper: difference 0."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_samples import Official, make_tiny
from safetensors.torch import load_file

from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.policies.checkpoint import read_weights
from treadle.policies.prismatic.film import FilmBlock, mean_language, read_film
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.vision import Block
from treadle.policies.sampling import Sampling

RANK = 32
FILE = "vision_backbone--150000_checkpoint.pt"


def test_a_block_by_hand() -> None:
    """Attention and MLP silenced: what is left is x (1 + scale) + shift."""
    block = FilmBlock(Block(4, 2, 8, layer_scale=False), 4, 3)
    with torch.no_grad():
        for layer in (block.block.attn.proj, block.block.mlp.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
        block.scale.weight.zero_()
        block.shift.weight.zero_()
        block.scale.bias.fill_(0.5)
        block.shift.weight[:, 1] = 2
        block.shift.bias.fill_(-1)
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    language = torch.tensor([[9.0, 3.0, 9.0]])
    torch.testing.assert_close(block(x, language), 1.5 * x + 5)


def test_the_mean_counts_the_prompt_and_the_stop_token() -> None:
    embeddings = torch.tensor([[[1.0], [2.0], [50.0]], [[4.0], [5.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    torch.testing.assert_close(mean_language(embeddings, mask, torch.tensor([9.0])), torch.tensor([[4.0], [6.0]]))


def published(directory: Path, target: Path, *, modulated: bool, prefix: str = "") -> Path:
    """A directory with a FiLM file as official training writes it: peft's names, adapters, wrapped blocks."""
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("action_head*"))
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.02

    state: dict[str, torch.Tensor] = {}
    for name, tensor in read_weights(directory).items():
        if not name.startswith("vision_backbone."):
            continue
        path = name.split(".")
        if path[2] == "blocks":
            path.insert(4, "block")
        wrapped = ".".join(["vision_backbone", *path[1:-1]])
        linear = path[-2] in ("qkv", "proj", "fc1", "fc2", "q", "kv") and "patch_embed" not in path
        state[f"{wrapped}.base_layer.{path[-1]}" if linear else f"{wrapped}.{path[-1]}"] = tensor.clone()
        if linear and path[-1] == "weight":
            state[f"{wrapped}.lora_A.default.weight"] = noise(RANK, tensor.shape[1])
            up = noise(len(tensor), RANK) if modulated else torch.zeros(len(tensor), RANK)
            state[f"{wrapped}.lora_B.default.weight"] = up
        if path[-2:] == ["norm1", "weight"] and path[2] == "blocks":
            for layer in ("scale", "shift"):
                outside = ".".join(["vision_backbone", *path[1:4], layer])
                state[f"{outside}.weight"] = noise(len(tensor), 16) * modulated
                state[f"{outside}.bias"] = noise(len(tensor)) * modulated
    torch.save({prefix + name: tensor for name, tensor in state.items()}, target / FILE)
    return target


def load(directory: Path) -> OpenVLAOFT:
    policy = load_policy(directory, device="cpu", statistics="libero_spatial")
    assert isinstance(policy, OpenVLAOFT)
    return policy


def prepare(policy: OpenVLAOFT, official: Official, instruction: str, cameras: int = 1) -> PrismaticInputs:
    return policy.prepare(official.frames(0, cameras), [instruction], np.zeros((1, 8), np.float32))


def test_without_modulation_it_is_the_plain_policy(official: Official, tmp_path: Path) -> None:
    policy = load(published(official.directory, tmp_path / "film", modulated=False))
    assert policy.config.film
    assert policy.config.film_rank == RANK
    plain = load_policy(official.directory, device="cpu", statistics="libero_spatial", head="tokens")
    text = official.facts["observations"][0]["instruction"]
    for cameras in (1, 2):
        inputs = prepare(policy, official, text, cameras)
        greedy = [p.act(inputs, Sampling(temperature=0)) for p in (policy, plain)]
        assert torch.equal(greedy[0].log_probs, greedy[1].log_probs)


def test_adapters_are_merged_and_the_instruction_modulates(official: Official, tmp_path: Path) -> None:
    directory = published(official.directory, tmp_path / "film", modulated=True, prefix="module.")
    policy = load(directory)
    stored = torch.load(directory / FILE, weights_only=True)
    layer = "module.vision_backbone.featurizer.blocks.0.block.attn.qkv"
    # Published training scales by min(rank, 16) / rank, here a half.
    change = 0.5 * stored[f"{layer}.lora_B.default.weight"] @ stored[f"{layer}.lora_A.default.weight"]
    merged = policy.state_dict()["vision_backbone.featurizer.blocks.0.block.attn.qkv.weight"]
    torch.testing.assert_close(merged, stored[f"{layer}.base_layer.weight"] + change)
    features = [policy.features(prepare(policy, official, text)) for text in ("lift", "put it down")]
    assert (features[0] - features[1]).abs().max() > 1e-4
    groups = policy.freeze(vision=False)
    inputs = prepare(policy, official, "lift", cameras=2)
    policy.evaluate(inputs, policy.act(inputs, Sampling()).choice, Sampling()).log_probs.sum().backward()
    assert all(p.grad is not None for p in groups["policy"])


def test_it_is_saved_as_the_official_code_reads_it(official: Official, tmp_path: Path) -> None:
    directory = published(official.directory, tmp_path / "film", modulated=True)
    policy = load(directory)
    policy.save(tmp_path / "saved")
    before, after = (torch.load(folder / FILE, weights_only=True) for folder in (directory, tmp_path / "saved"))
    assert {name: tensor.shape for name, tensor in before.items()} == {n: t.shape for n, t in after.items()}
    assert all(not after[name].any() for name in after if ".lora_B." in name)
    main = {name for shard in sorted((tmp_path / "saved").glob("model*.safetensors")) for name in load_file(shard)}
    assert main == read_weights(directory).keys()
    again = load(tmp_path / "saved")
    inputs = prepare(policy, official, "lift")
    first, second = (p.act(inputs, Sampling(temperature=0)) for p in (policy, again))
    assert torch.equal(first.log_probs, second.log_probs)
    policy.add_lora(4)
    policy.save(tmp_path / "alone", merge=False)
    alone = load(tmp_path / "alone")
    torch.testing.assert_close(alone.act(inputs, Sampling(temperature=0)).log_probs, first.log_probs)
    with pytest.raises(ConfigError, match=r"policy\.lora with FiLM"):
        load(directory).add_lora(4, vision=True)


def test_files_and_towers_that_do_not_fit(official: Official, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="x: no FiLM layers; it has featurizer"):
        read_film({"vision_backbone.featurizer.norm.weight": torch.ones(1)}, Path("x"))
    with pytest.raises(ConfigError, match="film: only transformer towers can have it, not ConvTower"):
        make_tiny(tokenizer, film=True)
    directory = published(official.directory, tmp_path / "film", modulated=False)
    (directory / "vision_backbone--9_checkpoint.pt").write_bytes((directory / FILE).read_bytes())
    with pytest.raises(CheckpointError, match="2 files of vision_backbone"):
        load(directory)
