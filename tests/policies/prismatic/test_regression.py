"""Densities around regressed actions, and a policy that has them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import Official, make_tiny, sample_inputs

from treadle.data.noise import noise_key
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.regression import Density, draw, entropy, log_prob
from treadle.policies.sampling import Sampling

DENSITIES: list[Density] = ["laplace", "gaussian"]
TEMPERATURES = st.sampled_from([0.0, 0.5, 1.0, 1.6])


def test_log_densities_by_hand() -> None:
    values, centre, scale = torch.tensor([[0.3, 0.0]]), torch.tensor([[0.1, 0.0]]), torch.tensor([0.2, 0.5])
    # Laplace: -|x - m| / b - ln 2b = -1 - ln 0.4, and -ln 1.
    laplace = log_prob("laplace", values, centre, scale, Sampling())
    torch.testing.assert_close(laplace, torch.tensor([[-1 - math.log(0.4), 0.0]]))
    # Gaussian: -1/2 - ln 0.2 - ln sqrt(2 pi). At temperature 2 the scale is 0.4, the distance half.
    gaussian = log_prob("gaussian", values, centre, scale, Sampling())[0, 0]
    assert gaussian.item() == pytest.approx(-0.5 - math.log(0.2) - 0.918938533, abs=1e-6)
    hot = log_prob("gaussian", values, centre, scale, Sampling(temperature=2))[0, 0]
    assert hot.item() == pytest.approx(-0.125 - math.log(0.4) - 0.918938533, abs=1e-6)
    assert torch.equal(log_prob("laplace", values, centre, scale, Sampling(temperature=0)), laplace)


def test_draws_by_hand() -> None:
    centre, scale = torch.zeros(1, 3), torch.ones(3)
    noise = torch.tensor([[0.25, 0.5, 0.75]])
    # Quartiles: of Laplace -ln 2 and ln 2, of the normal -0.6745 and 0.6745.
    expected = {"laplace": math.log(2), "gaussian": 0.6744898}
    for density in DENSITIES:
        drawn = draw(density, centre, scale, Sampling(), noise)
        torch.testing.assert_close(drawn, torch.tensor([[-expected[density], 0.0, expected[density]]]))
        assert torch.equal(draw(density, centre, scale, Sampling(temperature=0), noise), centre)
        assert draw(density, centre, scale, Sampling(), torch.zeros(1, 3)).isfinite().all()


@pytest.mark.parametrize("density", DENSITIES)
def test_a_density_integrates_to_one_and_entropy_is_its_mean(density: Density) -> None:
    x = torch.linspace(-8, 8, 160_001).double()[:, None]
    scale, sampling = torch.tensor([0.4]).double(), Sampling(temperature=0.8)
    log_p = log_prob(density, x, torch.zeros(1).double(), scale, sampling)
    step = 16 / 160_000
    assert (log_p.exp().sum() * step).item() == pytest.approx(1, abs=1e-5)
    expected = -(log_p.exp() * log_p).sum() * step
    torch.testing.assert_close(entropy(density, scale, sampling)[0], expected, atol=1e-5, rtol=0)


def make_regressing(tokenizer: Path, head: str = "laplace", **facts: Any) -> OpenVLAOFT:
    return make_tiny(tokenizer, head=head, **facts)


@pytest.fixture(scope="module", params=DENSITIES)
def regressing(request: pytest.FixtureRequest, tokenizer: Path) -> OpenVLAOFT:
    return make_regressing(tokenizer, request.param)


@settings(max_examples=20)
@given(TEMPERATURES, st.permutations(range(5)), st.integers(0, 1000))
def test_evaluation_agrees_with_acting(regressing: OpenVLAOFT, temperature: float, order: list[int], seed: int) -> None:
    sampling, rows = Sampling(temperature=temperature), torch.tensor(order)
    inputs = sample_inputs(regressing, 5, seed)
    decision = regressing.act(inputs, sampling, noise_key(seed, np.arange(5)))
    evaluation = regressing.evaluate(inputs.take(rows), decision.choice[rows], sampling)
    # The order of a batch moves means by some 1e-7; a density multiplies that by its slope, some hundred.
    torch.testing.assert_close(evaluation.log_probs.detach(), decision.log_probs[rows], atol=1e-4, rtol=1e-5)
    assert evaluation.values is not None
    assert decision.values is not None
    torch.testing.assert_close(evaluation.values.detach(), decision.values[rows], atol=1e-5, rtol=1e-5)
    assert evaluation.entropy.shape == decision.log_probs.shape == (5, 2, 3)


def test_decisions_are_actions_in_the_robots_units(regressing: OpenVLAOFT) -> None:
    inputs = sample_inputs(regressing, 3)
    decision = regressing.act(inputs, Sampling(), noise_key(np.arange(3)))
    assert decision.choice.dtype == torch.float32
    # Ranges of the tiny policy: [-2, 1], the last dimension as it is.
    values = decision.choice.reshape(3, 2, 3)
    torch.testing.assert_close(decision.actions[..., :2], 1.5 * (values[..., :2] + 1) - 2, atol=1e-5, rtol=0)
    assert torch.equal(decision.actions[..., 2], values[..., 2])
    inside = decision.actions.clamp(-1, 1)
    torch.testing.assert_close(
        regressing.codec.scale.unnormalize(regressing.targets(inside).reshape(3, 2, 3)).float(), inside
    )


def test_policy_gradient_raises_what_is_rewarded(tokenizer: Path) -> None:
    """REINFORCE towards an action: its density grows, centre and scale both learn."""
    policy = make_regressing(tokenizer)
    inputs = sample_inputs(policy, 4)
    wanted = torch.full((4, 6), 0.3)
    optimizer = torch.optim.Adam(policy.freeze(vision=True)["policy"], lr=3e-3)
    before = policy.evaluate(inputs, wanted, Sampling()).log_probs.mean().item()
    assert policy.action_scale is not None
    scale = policy.action_scale.log_scale.detach().clone()
    for step in range(40):
        decision = policy.act(inputs, Sampling(), noise_key(step, np.arange(4)))
        reward = -(decision.choice - wanted).abs()
        loss = -(
            (reward - reward.mean()) * policy.evaluate(inputs, decision.choice, Sampling()).log_probs.flatten(1)
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert policy.evaluate(inputs, wanted, Sampling()).log_probs.mean().item() > before + 0.2
    assert not torch.equal(policy.action_scale.log_scale, scale)


def test_supervised_losses(tokenizer: Path) -> None:
    for head, power in (("laplace", 1), ("gaussian", 2)):
        policy = make_regressing(tokenizer, head)
        inputs = sample_inputs(policy, 2)
        centre = policy.act(inputs, Sampling(temperature=0)).choice
        assert policy.supervised_loss(inputs, centre + 0.5).item() == pytest.approx(0.5**power, abs=1e-5)
        off = torch.zeros_like(centre).unflatten(1, (policy.chunk, -1))
        off[:, 0], off[:, 1:] = 0.5, 9.0
        counted = torch.zeros(2, policy.chunk, dtype=torch.bool)
        counted[:, 0] = True
        found = policy.supervised_loss(inputs, centre + off.flatten(1), counted=counted)
        assert found.item() == pytest.approx(0.5**power, abs=1e-5)
        with pytest.raises(ConfigError, match=r"label_width 1\.0: this policy regresses"):
            policy.supervised_loss(inputs, centre, label_width=1.0)


def test_a_density_has_no_most_likely_tokens(tokenizer: Path) -> None:
    policy = make_regressing(tokenizer)
    with pytest.raises(ConfigError, match=r"top_k 5, top_p 1\.0: this policy regresses actions"):
        policy.act(sample_inputs(policy, 2), Sampling(top_k=5))
    with pytest.raises(ConfigError, match="head: found \"cauchy\"; allowed: 'tokens', 'laplace' or 'gaussian'"):
        make_regressing(tokenizer, "cauchy")


def test_published_heads_are_saved_as_they_were(official: Official, tmp_path: Path) -> None:
    policy = load_policy(official.directory, device="cpu", statistics="libero_spatial")
    assert isinstance(policy, OpenVLAOFT)
    assert policy.config.head == "laplace"
    policy.save(tmp_path / "saved")
    for name in ("action_head--150000_checkpoint.pt", "proprio_projector--150000_checkpoint.pt"):
        before, after = (
            torch.load(folder / name, weights_only=True) for folder in (official.directory, tmp_path / "saved")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert policy.action_scale is not None
    with torch.no_grad():
        policy.action_scale.log_scale.fill_(-1.5)
    policy.save(tmp_path / "saved")
    again = load_policy(tmp_path / "saved", device="cpu", statistics="libero_spatial")
    assert isinstance(again, OpenVLAOFT)
    assert again.action_scale is not None
    assert torch.equal(again.action_scale.log_scale, torch.full((7,), -1.5))


def test_another_density_or_tokens_on_the_same_checkpoint(official: Official) -> None:
    settings = {"device": "cpu", "statistics": "libero_spatial"}
    gaussian = load_policy(official.directory, head="gaussian", initial_scale=0.2, **settings)
    assert isinstance(gaussian, OpenVLAOFT)
    assert gaussian.action_scale is not None
    np.testing.assert_allclose(gaussian.action_scale(8).detach(), np.full(56, 0.2), rtol=1e-6)
    tokens = load_policy(official.directory, head="tokens", **settings)
    assert isinstance(tokens, OpenVLAOFT)
    assert tokens.action_head is None


def test_a_head_that_is_not_there(tiny: OpenVLAOFT, tmp_path: Path) -> None:
    tiny.save(tmp_path / "policy")
    with pytest.raises(CheckpointError, match="head 'laplace' needs an action_head file, and there is none"):
        load_policy(tmp_path / "policy", head="laplace")
    with pytest.raises(ConfigError, match=r"no setting 'haed' of openvla_oft; there are: chunk, "):
        load_policy(tmp_path / "policy", haed="laplace")


def test_two_arms(tokenizer: Path) -> None:
    """Chunks of 25 actions of 14 dimensions, and of 5 of 7."""
    for chunk, dimensions in ((25, 14), (5, 7)):
        for head in ("tokens", "laplace"):
            policy = make_tiny(tokenizer, chunk=chunk, action_dim=dimensions, head=head)
            decision = policy.act(sample_inputs(policy, 2), Sampling())
            assert decision.actions.shape == (2, chunk, dimensions)
            assert decision.log_probs.shape == (2, chunk, dimensions)
