"""Epochs of an update: their order, where they stop, and what is said of them, on numbers that can be followed."""

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from miniature import learning_config
from table_policy import TablePolicy, table_rollout
from treadle.algorithms.estimators import Estimate, Timeline
from treadle.data.rollout import Rollout
from treadle.errors import DivergenceError
from treadle.training.on_policy.ppo import PPO
from update_samples import make_ppo

RETURNS: dict[str, Any] = {"kind": "grpo", "group_size": 1, "estimator": "reinforce_pp"}
STILL = {"learning_rate": 1e-12, "weight_decay": 0.0}


def row(*entries: float) -> Tensor:
    """[1, N, 1]: the rewards of N slots that make one decision of one action."""
    return torch.tensor(entries)[None, :, None]


def returning(ratios: list[float], rate: float = 1e-12, **algorithm: Any) -> tuple[PPO, Rollout]:
    """Decisions that earn 1, -1, 1, ... and have become so many times likelier."""
    policy = TablePolicy(torch.full((len(ratios), 1, 1), -3.0))
    rollout = table_rollout(policy, row(*[(-1.0) ** i for i in range(len(ratios))]))
    rollout.log_probs -= torch.tensor(ratios).log()[None, :, None, None]
    config = learning_config(algorithm=RETURNS | algorithm, optimizer=STILL | {"learning_rate": rate})
    return make_ppo(policy, config, None), rollout


class SeeingCritic(nn.Module):
    """Values of 0, and the states that it learnt from."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def forward(self, states: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(states[:, 0, 0].int().tolist())
        return self.bias * torch.ones(len(states), 1)


def test_policy_and_critic_take_a_new_order_in_every_epoch_of_every_iteration():
    policy, critic = TablePolicy(torch.full((8, 1, 1), -1.0)), SeeingCritic()
    config = learning_config(
        # A measured gradient is of two halves.
        algorithm={"epochs": 3, "minibatch": 8, "micro_batch": 8, "decoupled": False, "signal_every": 0},
        critic={"kind": "privileged", "epochs": 2},
    )
    ppo = make_ppo(policy, config, critic)
    for iteration in (3, 4):
        ppo.update([table_rollout(policy, row(*range(8)))], iteration)
    orders = policy.evaluated + critic.seen
    assert (len(policy.evaluated), len(critic.seen)) == (6, 4)
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 10


def test_a_minibatch_is_a_part_of_its_epochs_order():
    policy, critic = TablePolicy(torch.full((5, 1, 1), -1.0)), SeeingCritic()
    config = learning_config(algorithm={"minibatch": 2, "micro_batch": 8}, critic={"kind": "privileged", "epochs": 1})
    make_ppo(policy, config, critic).update([table_rollout(policy, row(*range(5)))], 3)
    for seen in (policy.evaluated, critic.seen):
        assert [len(part) for part in seen] == [2, 2, 1]
        assert sorted(row for part in seen for row in part) == list(range(5))


@pytest.mark.parametrize(("target", "steps"), [(0.4, 2), (0.5, 8)])
def test_target_kl_is_compared_with_the_mean_over_the_epochs_minibatches(target: float, steps: int):
    """Minibatches of one decision each, with divergences of 0 and of 3 - 1 - log 3 = 0.9: their mean is 0.45 in every
    epoch, whichever comes last.
    """
    found = []
    for seed in range(3):
        ppo, rollout = returning([1.0, 3.0], epochs=4, minibatch=1, target_kl=target)
        ppo._config = ppo._config.model_copy(update={"seed": seed})
        metrics = ppo.update([rollout], 3)
        assert metrics["update/approximate_kl"] == pytest.approx((3 - 1 - log(3)) / 2, rel=1e-5)
        found.append(metrics["update/steps"])
    assert found == [steps] * 3


def test_target_kl_is_compared_with_the_last_epoch_alone():
    """A first step of 0.1 makes divergences of exp(0.1) - 1.1 = 0.0052 and exp(-0.1) - 0.9 = 0.0048, from 0."""
    ppo, rollout = returning([1.0, 1.0], rate=0.1, epochs=5, minibatch=2, target_kl=0.004)
    metrics = ppo.update([rollout], 3)
    assert metrics["update/steps"] == 2
    assert metrics["update/approximate_kl"] == pytest.approx(0.0025, abs=1e-5), (
        "the mean over both is no reason to stop"
    )


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_metrics_of_all_micro_batches(micro_batch: int):
    ratios = [1.0, 2.0, 0.5, 3.0]
    ppo, rollout = returning(ratios, minibatch=8, micro_batch=micro_batch, clip_low=0.2, clip_high=0.3)
    metrics = ppo.update([rollout], 3)
    gaps = [abs(log(ratio)) for ratio in ratios]
    expected = {
        "log_prob_gap": max(gaps),
        "log_prob_gap_mean": sum(gaps) / 4,
        "ratio_min": 0.5,
        "ratio_max": 3.0,
        # Of 1, -1, 1, -1: 2 with -1 and 0.5 with 1 may go on, and so may 3 with -1.
        "clip_share": 0.0,
        "policy_loss": (-1 + 2 - 0.5 + 3) / 4,
        "approximate_kl": sum(r - 1 - log(r) for r in ratios) / 4,
        "entropy": 1.0,
        # After Kish, the ratios as weights.
        "effective_samples": (sum(ratios) ** 2) / sum(r * r for r in ratios),
        "stale_weight": 1.0,
        "reference_kl": 0.0,
        "steps": 1.0,
    }
    assert {name: metrics[f"update/{name}"] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_metrics_of_all_minibatches_and_the_gap_of_the_first():
    """Two steps, of which one has a clipped decision: 3 with an advantage of 1."""
    ppo, rollout = returning([1.0, 1.0, 3.0, 1.0], minibatch=2, clip_high=0.3)
    metrics = ppo.update([rollout], 3)
    assert metrics["update/steps"] == 2
    assert metrics["update/clip_share"] == pytest.approx(1 / 4)
    assert metrics["update/policy_loss"] == pytest.approx((-1 + 1 - 1.3 + 1) / 4, rel=1e-4)
    assert metrics["update/effective_samples"] == pytest.approx(4 * 1.5**2 / 3)
    assert (metrics["update/ratio_min"], metrics["update/ratio_max"]) == pytest.approx((1.0, 3.0))
    first = ppo.policy.evaluated[0]
    assert metrics["update/log_prob_gap"] == pytest.approx(log(3.0) if 2 in first else 0.0)


def test_the_gradient_norm_is_the_mean_over_steps():
    """A ratio of 1 and an advantage of 1 or -1, each alone in its minibatch: every gradient is 1."""
    ppo, rollout = returning([1.0, 1.0], minibatch=1)
    assert ppo.update([rollout], 3)["update/gradient_norm"] == pytest.approx(1.0, rel=1e-4)


def test_explained_variance_and_loss_of_the_head():
    """Values 1, 2 and 5 of returns 1, 3 and 5: errors 0, 1 and 0 with a variance of 2 / 9, returns of 8 / 3."""
    policy = TablePolicy(torch.full((3, 1, 1), -1.0), torch.tensor([[1.0], [2.0], [5.0]]))
    ppo = make_ppo(policy, learning_config(critic={"clip": 100.0, "coefficient": 0.1}))
    metrics = ppo.update([table_rollout(policy, row(1, 3, 5))], 3)
    assert metrics["critic/explained_variance"] == pytest.approx(1 - (2 / 9) / (8 / 3), abs=1e-6)
    assert metrics["critic/mean_return"] == pytest.approx(3)
    assert metrics["critic/loss"] == pytest.approx(0.5 / 3)


def test_the_loss_of_a_separate_critic_is_the_mean_over_its_minibatches():
    """Values of 0, of returns 2 and 4: half the squares are 2 and 8, in two steps that move next to nothing."""
    policy = TablePolicy(torch.full((2, 1, 1), -1.0))
    config = learning_config(
        algorithm={"minibatch": 1}, critic={"kind": "privileged", "epochs": 2, "learning_rate": 1e-9}
    )
    metrics = make_ppo(policy, config, SeeingCritic()).update([table_rollout(policy, row(2, 4))], 3)
    assert metrics["critic/loss"] == pytest.approx(5.0)
    assert metrics["critic/explained_variance"] == 0
    assert {name for name in metrics if name.startswith("time/")} == {"time/critic", "time/update"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("log_probs", "log-probs of the policy is nan"),
        ("entropy", "entropy of the policy is nan"),
        ("value_head.0", "values of the policy's head is nan"),
    ],
)
def test_a_policy_that_says_nan_is_at_fault(name: str, said: str):
    policy = TablePolicy(torch.full((2, 1, 1), -1.0), torch.zeros(2, 1))
    rollout = table_rollout(policy, row(2, 4))
    before = {key: x.clone() for key, x in policy.state_dict().items()}
    policy.get_parameter(name).data[1] = torch.nan
    with pytest.raises(DivergenceError, match=rf"^{said}"):
        make_ppo(policy, learning_config(algorithm={"entropy_coefficient": 0.1})).update([rollout], 3)
    assert all(torch.equal(policy.state_dict()[key][0], x[0]) for key, x in before.items()), "no step was made"


def nowhere(timeline: Timeline) -> Estimate:
    return Estimate(timeline.rewards * torch.nan)


def test_an_estimator_that_says_nan_is_at_fault(monkeypatch: pytest.MonkeyPatch):
    import fakes

    monkeypatch.setattr(fakes, "nowhere", nowhere, raising=False)
    policy = TablePolicy(torch.full((2, 1, 1), -1.0), torch.zeros(2, 1))
    ppo = make_ppo(policy, learning_config(algorithm={"estimator": "fakes:nowhere", "normalize_advantages": False}))
    with pytest.raises(DivergenceError, match=r"^advantages is nan"):
        ppo.update([table_rollout(policy, row(2, 4))], 3)
    assert not policy.evaluated, "it is found before the first pass"


@pytest.mark.parametrize(("kind", "name"), [("value_head", "value_head.0"), ("privileged", "bias")])
def test_a_gradient_of_the_critic_that_is_nan_is_named(kind: str, name: str):
    policy, network = TablePolicy(torch.full((2, 1, 1), -1.0), torch.zeros(2, 1)), SeeingCritic()
    critic = network if kind == "privileged" else None
    ppo = make_ppo(policy, learning_config(critic={"kind": kind}), critic)
    (network if critic else policy).get_parameter(name).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DivergenceError, match=f"^gradient of the critic, {name}, is nan"):
        ppo.update([table_rollout(policy, row(2, 4))], 3)
    assert not policy.value_head[0].any()
    assert network.bias == 0
