"""What GRPO, skipping, chunk masking, decoupling and the reference do to an update."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miniature import SCENARIOS, SUCCESSES, grouped, learning_config, make_policy, make_rollout
from treadle.algorithms.losses import policy_loss
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.policies.critic import NoCritic, ValueHeadCritic
from treadle.policies.openvla_oft import OpenVLAOFT
from treadle.training import loop
from treadle.training.critic_fit import CriticFit
from treadle.training.health import alarms
from treadle.training.learner import Learner
from treadle.training.passes import Anchors, PolicyPasses
from treadle.training.samples import Samples, estimate_advantages

CPU = torch.device("cpu")
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
    fit = CriticFit(NoCritic(), settings, CPU)
    passes = PolicyPasses(policy, fit, settings, torch.ones(3, dtype=torch.bool), CPU)
    weights = samples.weights() if settings.algorithm.trajectory_weights else None
    passes.accumulate(samples, weights, Anchors(), rows, version=3)
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
        Learner(policy, NoCritic(), config(chunk_share=share), CPU).update([rollout], iteration=3)
        assert sum(seen) == rows, "two of three groups are skipped: 8 decisions of 18 remain"


def test_grpo_updates_without_a_critic(policy: OpenVLAOFT, rollout: Rollout):
    before = copy.deepcopy(policy.state_dict())
    metrics = Learner(policy, NoCritic(), config(), CPU).update([rollout], iteration=0)
    assert not any(name.startswith("critic/") for name in metrics)
    assert metrics["update/filtered_group_share"] == pytest.approx(2 / 3)
    assert metrics["update/learning_rate"] == 1e-4, "there is no warm-up of a critic"
    assert {
        *("update/approximate_kl", "update/clip_share", "update/ratio_min", "update/ratio_max", "update/entropy"),
        *("update/gradient_norm", "update/valid_share", "update/effective_samples", "update/dead_token_share"),
    } <= metrics.keys()
    assert 0 < metrics["update/effective_samples"] <= 8.001
    assert metrics["update/ratio_min"] <= 1 <= metrics["update/ratio_max"]
    assert any(not torch.equal(before[name], x) for name, x in policy.state_dict().items())


def test_nothing_to_learn_from_changes_nothing(policy: OpenVLAOFT, base: OpenVLAOFT):
    before = copy.deepcopy(policy.state_dict())
    lost = grouped(base, [False] * 4, [1, 1, 2, 2])
    metrics = Learner(policy, NoCritic(), config(), CPU).update([lost], iteration=3)
    assert metrics["update/steps"] == 0
    assert metrics["update/filtered_group_share"] == metrics["update/dead_token_share"] == 1
    assert all(torch.equal(before[name], x) for name, x in policy.state_dict().items())


def test_stale_data_is_anchored_at_the_present_policy(policy: OpenVLAOFT, rollout: Rollout):
    """Data of version 1 at iteration 3, drawn by a policy that since has changed; half of it is fresh."""
    rollout.versions[:2] = 1
    rollout.log_probs[:2] -= 1.0
    learner = Learner(policy, NoCritic(), config(decoupled=True, stale_weight_cap=4.0), CPU)
    samples = estimate_advantages([rollout], config().algorithm)
    anchors = learner._anchors(samples, iteration=3)
    assert anchors.proximal is not None
    fresh = samples.versions == 3
    assert torch.equal(anchors.proximal[fresh], samples.log_probs[fresh])
    assert torch.allclose(anchors.proximal[~fresh], samples.log_probs[~fresh] + 1, atol=1e-4)
    metrics = learner.update([rollout], iteration=3)
    # Of 8 decisions that are trained, those of the first two steps are two versions old.
    assert 0 < metrics["update/staleness"] < 2
    assert metrics["update/stale_weight"] > 1.5
    assert metrics["update/log_prob_gap"] < 1e-4, "only fresh data tell of a gap"
    plain = Learner(policy, NoCritic(), config(), CPU)
    assert plain._anchors(samples, iteration=3) == Anchors()


def test_the_reference_starts_equal_and_its_coefficient_adapts(policy: OpenVLAOFT, base: OpenVLAOFT, rollout: Rollout):
    reference = {"coefficient": 0.5, "estimator": "k3", "target": 1.0}
    settings = learning_config(algorithm=GRPO | {"reference": reference}, optimizer={"learning_rate": 1e-2})
    learner = Learner(policy, NoCritic(), settings, CPU, reference=base)
    first = learner.update([rollout], iteration=3)
    assert first["update/reference_kl"] == pytest.approx(0, abs=1e-6)
    assert first["update/reference_coefficient"] == 0.5
    second = learner.update([rollout], iteration=4)
    assert second["update/reference_kl"] > 0
    assert second["update/reference_coefficient"] == pytest.approx(0.5 * (1 - 0.1 * 0.2))
    restored = Learner(copy.deepcopy(policy), NoCritic(), settings, CPU, reference=base)
    restored.load_state_dict(copy.deepcopy(learner.state_dict()))
    one, other = (x.update([rollout], iteration=5) for x in (learner, restored))
    assert {k: x for k, x in one.items() if "time/" not in k} == {k: x for k, x in other.items() if "time/" not in k}


def test_a_reference_pulls_the_policy_back(base: OpenVLAOFT, rollout: Rollout):
    """With advantages of next to nothing, a step lowers the divergence that an earlier one made."""
    moved = copy.deepcopy(base)
    Learner(moved, NoCritic(), learning_config(algorithm=GRPO, optimizer={"learning_rate": 1e-2}), CPU).update(
        [rollout], iteration=3
    )
    reference = {"coefficient": 100.0, "estimator": "k2"}
    settings = learning_config(algorithm=GRPO | {"reference": reference}, optimizer={"learning_rate": 1e-3})
    learner = Learner(moved, NoCritic(), settings, CPU, reference=base)
    found = [learner.update([rollout], iteration=3 + i)["update/reference_kl"] for i in range(4)]
    assert found[-1] < found[0]


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


def test_a_gap_between_rollout_and_trainer_raises_the_alarm(policy: OpenVLAOFT):
    policy.add_value_head(2)
    learner = Learner(policy, ValueHeadCritic(policy), learning_config(), CPU)
    rollout = make_rollout(policy)
    metrics = learner.update([rollout], iteration=3)
    assert not alarms(metrics, 0.05)
    rollout = make_rollout(policy)
    rollout.log_probs += 0.1
    metrics = learner.update([rollout], iteration=3)
    assert metrics["update/log_prob_gap_mean"] == pytest.approx(0.1, abs=1e-3)
    (warning,) = alarms(metrics, 0.05)
    assert "differ by 0.1 nats" in warning


def refilled(rollouts: Sequence[Rollout], **fields: Any) -> int:
    """How many of the rollouts the loop collects for one update."""
    waiting = iter(rollouts)
    collector = SimpleNamespace(collect=lambda decisions, version: next(waiting))
    settings = config(filter=fields.pop("filter", {}), **fields)
    return len(loop.collect(SimpleNamespace(config=settings, collector=collector), 0))  # type: ignore[arg-type]


def test_the_batch_is_refilled_until_enough_groups_remain_or_the_limit(base: OpenVLAOFT):
    lost = grouped(base, [False] * 4, [1, 1, 2, 2])
    half = grouped(base, [False, True, False, False], [1, 1, 2, 2])
    full = grouped(base, [False, True, False, True], [1, 1, 2, 2])
    assert refilled([half, full]) == 1, "no refills by default"
    assert refilled([half, lost, half, full], filter={"refills": 5}) == 3
    assert refilled([full, full], filter={"refills": 5}) == 1
    assert refilled([lost] * 9, filter={"refills": 2}) == 3
    assert refilled([half] * 9, rounds=2, filter={"refills": 5}) == 4


def test_summaries_add_rollouts_up(base: OpenVLAOFT):
    rollouts = [grouped(base, successes, [1, 1]) for successes in ([True, True], [False, True])]
    rollouts[0].seconds, rollouts[1].seconds = {"simulate": 1.0}, {"simulate": 2.0, "generate": 4.0}
    summary = loop.summarize(rollouts)
    assert summary["rollout/success"] == 0.75
    assert summary["rollout/control_steps"] == 3 + 3 + 6 + 3
    assert (summary["time/simulate"], summary["time/generate"], summary["rollout/rounds"]) == (3, 4, 2)
