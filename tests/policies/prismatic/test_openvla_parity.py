"""Parity with the official OpenVLA implementation, from its own outputs; tolerances are the fixture's README's."""

import numpy as np
import pytest
import torch
from PIL import Image
from policy_samples import Official
from torch.nn import functional as F

from treadle.policies import load_policy
from treadle.policies.prismatic.image import pixel_values
from treadle.policies.prismatic.llama import causal
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.openvla import OpenVLA
from treadle.policies.prismatic.resampling import pillow_bicubic
from treadle.policies.sampling import Sampling

SAMPLES = range(3)


def load(official: Official, statistics: str = "bridge_orig") -> OpenVLA:
    policy = load_policy(official.directory, device="cpu", statistics=statistics)
    assert isinstance(policy, OpenVLA)
    return policy


@pytest.fixture(scope="module")
def policy(official_openvla: Official) -> OpenVLA:
    return load(official_openvla)


@pytest.fixture(scope="module")
def inputs(official_openvla: Official, policy: OpenVLA) -> list[PrismaticInputs]:
    """One sample each."""
    return [
        policy.prepare([frames(official_openvla, index)], [official_openvla.facts["samples"][index]["instruction"]])
        for index in SAMPLES
    ]


def frames(official: Official, index: int) -> np.ndarray:
    return np.asarray(Image.open(official.directory / f"images/sample_{index}.png").convert("RGB"))[None]


@pytest.mark.parametrize("index", [1, 2])
def test_resize_is_pillows_exactly(official_openvla: Official, index: int) -> None:
    resized = pillow_bicubic(torch.tensor(frames(official_openvla, index)), (224, 224))[0]
    np.testing.assert_array_equal(resized, official_openvla.arrays[f"resized_{index}"])


@pytest.mark.parametrize("index", SAMPLES)
def test_pixel_values(official_openvla: Official, policy: OpenVLA, inputs: list[PrismaticInputs], index: int) -> None:
    assert inputs[index].frames is not None
    pixels = torch.cat(
        pixel_values(inputs[index].frames[:, 0], policy._images.means, policy._images.stds, torch.float32), dim=1
    )[0]
    arrays = official_openvla.arrays
    np.testing.assert_allclose(pixels[:, 3::7, 3::7], arrays[f"pixel_values_strided_{index}"], atol=1e-6)
    np.testing.assert_allclose(pixels.double().mean(dim=(1, 2)), arrays[f"pixel_values_mean_{index}"], atol=1e-6)
    deviation = pixels.double().std(dim=(1, 2), correction=0)
    np.testing.assert_allclose(deviation, arrays[f"pixel_values_std_{index}"], atol=1e-6)
    if index == 0:
        np.testing.assert_allclose(pixels, arrays["pixel_values_0"], atol=1e-6)


@pytest.mark.parametrize("index", SAMPLES)
def test_prompt_and_prefix(
    official_openvla: Official, policy: OpenVLA, inputs: list[PrismaticInputs], index: int
) -> None:
    arrays, sample = official_openvla.arrays, official_openvla.facts["samples"][index]
    assert policy.prompts.ids(sample["instruction"]) == sample["model_ids"]
    with torch.no_grad():
        features = policy.features(inputs[index])
        np.testing.assert_allclose(features[0], arrays[f"projected_patches_{index}"], atol=1e-4)
        prefix = policy.prefix(inputs[index])
        columns = prefix.last + 1
        hidden = causal(policy.language_model, prefix.embeddings, prefix.positions(columns), prefix.valid(columns), 8)[
            0
        ]
        np.testing.assert_allclose(hidden, arrays[f"hidden_last8_{index}"], atol=2e-4)
        np.testing.assert_allclose(policy._action_logits(hidden), arrays[f"logits_last8_action_{index}"], atol=5e-4)
        everything = policy.language_model.lm_head(hidden)
        np.testing.assert_allclose(everything[:, ::64], arrays[f"logits_last8_strided_{index}"], atol=5e-4)
        np.testing.assert_allclose(everything.logsumexp(-1), arrays[f"logsumexp_last8_{index}"], atol=1e-5)


@pytest.mark.parametrize("key", ["bridge_orig", "libero_spatial"])
def test_greedy_actions(official_openvla: Official, inputs: list[PrismaticInputs], key: str) -> None:
    policy = load(official_openvla, key)
    arrays = official_openvla.arrays
    for index in SAMPLES:
        decision = policy.act(inputs[index], Sampling(temperature=0))
        np.testing.assert_array_equal(decision.choice[0], arrays[f"generated_tokens_{index}"])
        # The scale has 1e-8 more than the official one.
        expected = arrays[f"action_{index}_{policy.statistics}"]
        np.testing.assert_allclose(policy.codec.decode(decision.choice)[0, 0], expected, atol=2e-8)
        np.testing.assert_allclose(decision.actions[0, 0], expected, atol=1e-6)
        normalized = policy.codec.normalized(decision.choice[0])
        np.testing.assert_allclose(normalized, arrays[f"action_normalized_{index}"], atol=1e-12)
        with torch.no_grad():
            logits, _ = policy._logits(inputs[index], decision.choice)
        np.testing.assert_allclose(logits[0], arrays[f"generated_logits_action_{index}"], atol=5e-4)
        log_probs = torch.log_softmax(logits[0], dim=-1).amax(dim=-1)
        np.testing.assert_allclose(decision.log_probs[0, 0], log_probs, atol=1e-5)


def test_padded_batch_acts_as_its_samples(
    official_openvla: Official, policy: OpenVLA, inputs: list[PrismaticInputs]
) -> None:
    decision = policy.act(PrismaticInputs.cat(inputs), Sampling(temperature=0))
    expected = np.stack([official_openvla.arrays[f"generated_tokens_{index}"] for index in SAMPLES])
    np.testing.assert_array_equal(decision.choice, expected)


def test_padded_batch_and_gradients(official_openvla: Official, inputs: list[PrismaticInputs]) -> None:
    policy, arrays = load(official_openvla), official_openvla.arrays
    tokens = torch.from_numpy(arrays["batch_target_tokens"])
    hidden = policy.hidden_states(PrismaticInputs.cat(inputs), tokens, reads=8)
    np.testing.assert_allclose(policy._action_logits(hidden).detach(), arrays["batch_logits_action"], atol=5e-4)
    # The official loss also counts the stop token, and is taken over all rows.
    labels = torch.cat([tokens, torch.full((3, 1), 2)], dim=1)
    everything = policy.language_model.lm_head(hidden)
    np.testing.assert_allclose(everything.logsumexp(-1).detach(), arrays["batch_logsumexp"], atol=1e-5)
    log_probs = F.log_softmax(everything, dim=-1).gather(-1, labels[..., None])[..., 0]
    np.testing.assert_allclose(log_probs.detach(), arrays["batch_token_logprob"], atol=5e-4)
    loss = -log_probs.mean()
    assert loss.item() == pytest.approx(float(arrays["batch_loss"]), abs=1e-5)
    loss.backward()
    for name, parameter in policy.named_parameters():
        expected = official_openvla.facts["grad_norm"][name]
        if expected is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.norm().item() == pytest.approx(expected, rel=5e-4), name
    assert policy.projector.fc3 is not None
    np.testing.assert_allclose(policy.projector.fc3.weight.grad, arrays["grad_projector_fc3_weight"], atol=1e-4)
    norm = policy.language_model.model.norm.weight
    np.testing.assert_allclose(norm.grad, arrays["grad_final_norm_weight"], atol=1e-4)
