"""The policy's gradient: what skipping and chunk masking do to it, and what must not change it."""

import copy
from typing import Any

import pytest
import torch

from miniature import SCENARIOS, SUCCESSES, grouped, learning_config, make_policy
from treadle.algorithms.losses import policy_loss
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.on_policy.batch import Batch, Samples, estimate_advantages
from treadle.training.on_policy.critic_fit import CriticFit
from treadle.training.on_policy.gradient import PolicyGradient
from update_samples import CPU, make_ppo

GRPO: dict[str, Any] = {"kind": "grpo", "group_size": 3, "minibatch": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    torch.manual_seed(0)
    return make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)


@pytest.fixture
def policy(base: OpenVLAOFT) -> OpenVLAOFT:
    return copy.deepcopy(base)


@pytest.fixture
def rollout(base: OpenVLAOFT) -> Rollout:
    return grouped(base, SUCCESSES, SCENARIOS)


def config(**algorithm: Any) -> TrainConfig:
    return learning_config(algorithm=GRPO | algorithm)


def gradient(policy: OpenVLAOFT, settings: TrainConfig, samples: Samples, rows: torch.Tensor) -> torch.Tensor:
    """The gradient of one minibatch, as one vector."""
    parameters = policy.freeze(vision=True)["policy"]
    fit = CriticFit(None, settings, CPU)
    passes = PolicyGradient(policy, fit, settings, torch.ones(3, dtype=torch.bool), CPU)
    weights = samples.weights() if settings.algorithm.trajectory_weights else None
    passes.accumulate(Batch(samples, samples, weights), rows, version=3)
    found = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    policy.zero_grad(set_to_none=True)
    return found


def test_skipping_groups_is_masking_them_in_gradient(policy: OpenVLAOFT, rollout: Rollout):
    settings = config(trajectory_weights=False)
    samples = estimate_advantages([rollout], settings.algorithm)
    skipped = samples.take(samples.trained)
    masked = copy.copy(samples)
    masked.valid = samples.valid & samples.trained[:, None]
    assert len(skipped) < len(masked)
    one, other = (gradient(policy, settings, x, torch.arange(len(x))) for x in (skipped, masked))
    assert one.abs().max() > 1e-3
    assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.01])
def test_chunk_masking_keeps_the_expected_gradient(policy: OpenVLAOFT, rollout: Rollout, share: float):
    """Over all turns of the order every decision is drawn equally often, so their mean is the expectation."""
    settings = config(chunk_share=share)
    samples = estimate_advantages([rollout], settings.algorithm)
    samples = samples.take(samples.trained)
    rows = torch.arange(len(samples))
    turns = [gradient(policy, settings, samples, rows.roll(turn)) for turn in range(len(samples))]
    whole = gradient(policy, config(), samples, rows)
    assert torch.allclose(torch.stack(turns).mean(0), whole, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(turns[0], whole, atol=1e-4)


def test_chunk_masking_saves_passes(policy: OpenVLAOFT, rollout: Rollout, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    evaluate = policy.evaluate

    def counted(inputs: Any, *arguments: Any) -> Any:
        seen.append(len(inputs))
        return evaluate(inputs, *arguments)

    monkeypatch.setattr(policy, "evaluate", counted)
    for share, rows in ((1.0, 8), (0.5, 4)):
        seen.clear()
        make_ppo(policy, config(chunk_share=share), None).update([rollout], iteration=3)
        assert sum(seen) == rows, "two of three groups are skipped: 8 decisions of 18 remain"


def doubled(batch: Any, objective: Any, weight_total: Any) -> Any:
    loss, metrics = policy_loss(batch, objective, weight_total)
    return 2 * loss, metrics


def test_a_loss_of_ones_own(policy: OpenVLAOFT, rollout: Rollout, monkeypatch: pytest.MonkeyPatch):
    import fakes

    monkeypatch.setattr(fakes, "doubled", doubled, raising=False)
    samples = estimate_advantages([rollout], config().algorithm)
    samples = samples.take(samples.trained)
    rows = torch.arange(len(samples))
    plain, own = (gradient(policy, config(loss=loss), samples, rows) for loss in ("clip", "fakes:doubled"))
    assert torch.allclose(own, 2 * plain, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", ["chunk", "sequence"])
def test_gradients_at_coarse_levels_do_not_depend_on_the_micro_batch(policy: OpenVLAOFT, rollout: Rollout, level: str):
    found = []
    for micro in (3, 64):
        settings = config(ratio_level=level, micro_batch=micro)
        samples = estimate_advantages([rollout], settings.algorithm)
        samples = samples.take(samples.trained)
        found.append(gradient(policy, settings, samples, torch.arange(len(samples))))
    # Entries are up to 10, and sums of terms of either sign.
    assert torch.allclose(*found, atol=3e-5, rtol=1e-4)


def test_order_of_decisions_does_not_change_a_steps_gradient(policy: OpenVLAOFT, rollout: Rollout):
    samples = estimate_advantages([rollout], config().algorithm)
    samples = samples.take(samples.trained)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(1))
    rows = torch.arange(len(samples))
    one, other = (gradient(policy, config(), x, rows) for x in (samples, samples.take(order)))
    assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)
