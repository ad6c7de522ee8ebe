"""Parity with the official OpenVLA-OFT implementation, from its own outputs; tolerances are the fixture's README's."""

from typing import Any

import numpy as np
import pytest
import torch
from policy_samples import Official
from torch.nn import functional as F

from treadle.policies import load_policy
from treadle.policies.prismatic.image import pixel_values
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.resampling import pillow_bicubic
from treadle.policies.sampling import Sampling

CASES = ["one_image", "two_images", "two_images_proprio"]
L1_CASES = ["l1_one_image", "l1_two_images_proprio"]


def load(official: Official, statistics: str = "libero_spatial", **overrides: Any) -> OpenVLAOFT:
    policy = load_policy(official.directory, device="cpu", statistics=statistics, **{"head": "tokens", **overrides})
    assert isinstance(policy, OpenVLAOFT)
    return policy


@pytest.fixture(scope="module")
def policy(official: Official) -> OpenVLAOFT:
    return load(official)


@pytest.mark.parametrize(("observation", "camera"), [(0, "primary"), (0, "wrist"), (1, "wrist")])
def test_resize_is_pillows_exactly(official: Official, observation: int, camera: str) -> None:
    frames = torch.tensor(official.frames(observation, 2)[("primary", "wrist").index(camera)])
    resized = pillow_bicubic(frames, (224, 224))[0]
    np.testing.assert_array_equal(resized, official.arrays[f"resized_{observation}_{camera}"])


def test_pixel_values(official: Official, policy: OpenVLAOFT) -> None:
    for observation in (0, 1):
        for index, camera in enumerate(("primary", "wrist")):
            frames = pillow_bicubic(torch.tensor(official.frames(observation, 2)[index]), (224, 224))
            pixels = torch.cat(pixel_values(frames, policy._images.means, policy._images.stds, torch.float32), dim=1)[0]
            expected = official.arrays[f"pixel_values_strided_{observation}_{camera}"]
            np.testing.assert_allclose(pixels[:, 5::14, 5::14], expected, atol=1e-6)
            mean = official.arrays[f"pixel_values_mean_{observation}_{camera}"]
            np.testing.assert_allclose(pixels.double().mean(dim=(1, 2)), mean, atol=1e-6)


def test_prompt_ids(official: Official, policy: OpenVLAOFT) -> None:
    for observation in official.facts["observations"]:
        assert policy.prompts.ids(observation["instruction"]) == observation["model_ids"]


@pytest.mark.parametrize("name", CASES)
def test_case(official: Official, name: str) -> None:
    case = next(case for case in official.facts["cases"] if case["name"] == name)
    observation = official.facts["observations"][case["observation"]]
    policy = load(official, case["unnorm_key"], **({} if case["proprio"] else {"proprioception_dim": 0}))
    proprioception = np.array([observation["proprio_raw"]])
    inputs = policy.prepare(
        official.frames(case["observation"], case["n_images"]), [observation["instruction"]], proprioception
    )
    with torch.no_grad():
        logits, hidden = policy._logits(inputs)
    decision = policy.act(inputs, Sampling(temperature=0))
    arrays = official.arrays
    np.testing.assert_allclose(hidden[0], arrays[f"{name}_hidden"], atol=2e-4)
    np.testing.assert_allclose(logits[0], arrays[f"{name}_logits_action"], atol=5e-4)
    np.testing.assert_array_equal(decision.choice[0], arrays[f"{name}_tokens"])
    normalized = policy.codec.normalized(decision.choice[0]).reshape(8, 7)
    np.testing.assert_allclose(normalized, arrays[f"{name}_action_normalized"], atol=1e-12)
    np.testing.assert_allclose(policy.codec.decode(decision.choice)[0], arrays[f"{name}_action"], atol=1e-9)
    np.testing.assert_allclose(decision.actions[0], arrays[f"{name}_action"], atol=1e-6)
    if policy.proprio_projector is not None:
        assert inputs.proprioception is not None
        token = policy.proprio_projector(inputs.proprioception)[0]
        np.testing.assert_allclose(token.detach(), arrays[f"{name}_proprio_token"], atol=1e-6)


@pytest.mark.parametrize("name", L1_CASES)
def test_l1_case(official: Official, name: str) -> None:
    case = next(case for case in official.facts["cases"] if case["name"] == name)
    observation = official.facts["observations"][case["observation"]]
    without = {} if case["proprio"] else {"proprioception_dim": 0}
    policy = load(official, case["unnorm_key"], head="laplace", **without)
    inputs = policy.prepare(
        official.frames(case["observation"], case["n_images"]),
        [observation["instruction"]],
        np.array([observation["proprio_raw"]]),
    )
    hidden = policy.hidden_states(inputs).detach()
    decision = policy.act(inputs, Sampling(temperature=0))
    arrays = official.arrays
    np.testing.assert_allclose(hidden[0], arrays[f"{name}_hidden"], atol=2e-4)
    np.testing.assert_allclose(decision.choice[0].reshape(8, 7), arrays[f"{name}_action_normalized"], atol=1e-4)
    np.testing.assert_allclose(decision.actions[0], arrays[f"{name}_action"], atol=1e-4)


def test_normalized_proprioception(official: Official, policy: OpenVLAOFT) -> None:
    for index, observation in enumerate(official.facts["observations"]):
        inputs = policy.prepare(
            official.frames(index, 1), [observation["instruction"]], np.array([observation["proprio_raw"]])
        )
        assert inputs.proprioception is not None
        expected = official.arrays[f"proprio_normalized_{index}_libero_spatial_no_noops"]
        np.testing.assert_allclose(inputs.proprioception[0], expected, atol=1e-6)


def test_padded_batch_and_gradients(official: Official) -> None:
    policy = load(official)
    observations = official.facts["observations"]
    parts = [
        policy.prepare(official.frames(index, 2), [observation["instruction"]], np.array([observation["proprio_raw"]]))
        for index, observation in enumerate(observations)
    ]
    inputs = PrismaticInputs.cat(parts)
    tokens = torch.from_numpy(official.arrays["batch_target_tokens"])
    logits, hidden = policy._logits(inputs)
    np.testing.assert_allclose(hidden.detach(), official.arrays["batch_hidden"], atol=2e-4)
    np.testing.assert_allclose(logits.detach(), official.arrays["batch_logits_action"], atol=5e-4)
    everything = F.log_softmax(policy.language_model.lm_head(hidden), dim=-1)
    log_probs = everything.gather(-1, tokens[..., None])[..., 0]
    np.testing.assert_allclose(log_probs.detach(), official.arrays["batch_token_logprob"][:, :56], atol=5e-4)

    # The official loss also counts the prediction of the stop token after each chunk, and is taken over all rows.
    stop = _hidden_with_stop(policy, inputs)[:, -1]
    stop_log_probs = F.log_softmax(policy.language_model.lm_head(stop), dim=-1)[:, 2]
    loss = -torch.cat([log_probs, stop_log_probs[:, None]], dim=1).mean()
    assert loss.item() == pytest.approx(official.facts["batch_loss"], abs=1e-5)
    loss.backward()
    for name, parameter in policy.named_parameters():
        expected = official.facts["grad_norm"][name]
        if expected is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.norm().item() == pytest.approx(expected, rel=5e-4), name


def _hidden_with_stop(policy: OpenVLAOFT, inputs: PrismaticInputs) -> torch.Tensor:
    """Hidden states at one position more: the one that predicts the stop token."""
    return policy.hidden_states(inputs, reads=policy.config.tokens + 1)


def test_freeze_finds_every_unused_parameter(official: Official) -> None:
    policy = load(official)
    policy.freeze(vision=False)
    idle = {name for name, norm in official.facts["grad_norm"].items() if norm is None}
    assert {name for name, parameter in policy.named_parameters() if not parameter.requires_grad} == idle
