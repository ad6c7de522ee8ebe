"""Parity with the official OpenVLA-OFT with FiLM, whose published file holds adapters of convolutions too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from film_fixture import FILM_FILE, FilmFixture, read_film_fixture
from safetensors.torch import load_file

from treadle.errors import CheckpointError
from treadle.policies import load_policy
from treadle.policies.checkpoint import read_weights
from treadle.policies.load import examine_policy
from treadle.policies.prismatic.activations import _vision
from treadle.policies.prismatic.film import read_film
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.protocol import Decision
from treadle.policies.sampling import Sampling


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> FilmFixture:
    return read_film_fixture(tmp_path_factory.mktemp("film") / "policy")


def load(directory: Path, **overrides: Any) -> OpenVLAOFT:
    policy = load_policy(directory, device="cpu", prompt_length=96, **overrides)
    assert isinstance(policy, OpenVLAOFT)
    return policy


def act(policy: OpenVLAOFT, film: FilmFixture) -> tuple[Decision, torch.Tensor]:
    inputs = policy.prepare(film.frames(), [film.prompt], film.arrays["proprio"][None])
    ids = torch.from_numpy(film.arrays["ids"])[None]
    inputs = replace(inputs, input_ids=ids, attention_mask=torch.ones_like(ids, dtype=torch.bool))
    with torch.no_grad():
        return policy.act(inputs, Sampling(temperature=0)), policy._logits(inputs)[0]


def test_tokens_and_regressed_actions(film: FilmFixture) -> None:
    tokens, logits = act(load(film.directory, head="tokens"), film)
    assert np.array_equal(tokens.choice[0], film.arrays["tok"])
    np.testing.assert_allclose(tokens.actions[0], film.arrays["tok_act"], atol=1e-6)
    # The official code leaves adapters apart from the weights, which rounds in another order.
    np.testing.assert_allclose(logits[0], film.arrays["logits"], atol=5e-5)
    regressed, _ = act(load(film.directory), film)
    np.testing.assert_allclose(regressed.actions[0], film.arrays["l1_act"], atol=5e-5)


def test_what_is_saved_has_the_official_names_and_shapes(film: FilmFixture, tmp_path: Path) -> None:
    policy = load(film.directory)
    policy.save(tmp_path / "saved")
    before = torch.load(film.directory / FILM_FILE, weights_only=True)
    after = torch.load(tmp_path / "saved" / FILM_FILE, weights_only=True)
    assert {name: tensor.shape for name, tensor in before.items()} == {n: x.shape for n, x in after.items()}
    convolution = "vision_backbone.featurizer.patch_embed.proj"
    assert after[f"{convolution}.lora_B.default.weight"].shape == (24, 8, 1, 1)
    assert not any(after[name].any() for name in after if ".lora_" in name)
    # Without change, the other files of the official loader are the same.
    for path in sorted(film.directory.glob("*.pt")):
        if path.name != FILM_FILE:
            first, second = (
                torch.load(folder / path.name, weights_only=True) for folder in (path.parent, tmp_path / "saved")
            )
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
    main, saved = (read_weights(folder) for folder in (film.directory, tmp_path / "saved"))
    assert {name: x.shape for name, x in main.items()} == {name: x.shape for name, x in saved.items()}
    first, second = (act(p, film)[0].actions for p in (policy, load(tmp_path / "saved")))
    assert torch.equal(first, second)


def test_a_merged_convolution_by_hand() -> None:
    """Rank 2, hence scaled by 1: the change of weight [o, i, y, x] is the sum over r of up [o, r] down [r, i, y, x]."""
    weight, down, up = torch.zeros(3, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.zeros(3, 2, 1, 1)
    down[0, 0, 0, 1], down[1, 0, 1, 0] = 5, 7
    up[2, 0], up[1, 1] = 2, 3
    layer = "vision_backbone.t.patch_embed.proj"
    file = {
        f"{layer}.base_layer.weight": weight,
        f"{layer}.lora_A.default.weight": down,
        f"{layer}.lora_B.default.weight": up,
        "vision_backbone.t.blocks.0.scale.weight": torch.zeros(1),
    }
    merged = read_film(file, Path("x.pt"))["t.patch_embed.proj.weight"]
    assert merged[2, 0].tolist() == [[0, 10], [0, 0]]
    assert merged[1, 0].tolist() == [[0, 0], [21, 0]]
    with pytest.raises(CheckpointError, match=r"base_layer\.weight without .*lora_A\.default\.weight and"):
        read_film({name: x for name, x in file.items() if ".lora_A." not in name}, Path("x.pt"))
    with pytest.raises(CheckpointError, match=r"adapters of LoRA alone can be merged, and .*magnitude"):
        read_film({**file, f"{layer}.lora_magnitude_vector.default.weight": up}, Path("x.pt"))


def test_an_adapter_of_its_language_model(film: FilmFixture, tmp_path: Path) -> None:
    policy = load(film.directory)
    policy.add_lora(4)
    policy.save(tmp_path / "alone", merge=False)
    names = load_file(tmp_path / "alone" / "lora_adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.language_model.") for name in names)
    torch.testing.assert_close(
        act(load(tmp_path / "alone"), film)[0].actions, act(load(film.directory), film)[0].actions
    )


def test_it_is_inspected(film: FilmFixture) -> None:
    found = examine_policy(film.directory)
    assert found.part_types[FILM_FILE] == "float32"
    assert found.descriptions["FiLM"]
    policy = load(film.directory)
    policy.freeze(vision=False)
    first, size = policy.towers()[0].blocks[0], policy.towers()[0].width
    # Modulated features are kept beside what the block keeps.
    assert _vision(first, size, 4) == _vision(first.block, size, 4) + 4 * size
    assert not found.not_finite
