"""Every setting of the loss and of the optimizer reaches the parameters, against arithmetic that is written out."""

from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from miniature import learning_config
from table_policy import TablePolicy, group_rollout, table_rollout
from treadle.training.on_policy.ppo import PPO
from update_samples import gradients, make_ppo

PLAIN: dict[str, Any] = {"normalize_advantages": False, "clip_high": 0.3, "minibatch": 64}


def column(*entries: float) -> Tensor:
    """[N, 1, 1]: a number for each decision, of one action with one dimension."""
    return torch.tensor(entries)[:, None, None]


def slopes(ppo: PPO, rollout: Any) -> list[Tensor]:
    """The loss's slopes by log-probs [N, C, A], entropies [N, C, A] and, with a value head, values [N, V]."""
    (step,) = gradients(ppo, rollout)
    return step


def policy_slope(ratio: float, advantage: float, **algorithm: Any) -> float:
    """The slope by the log-prob of a single decision."""
    policy = TablePolicy(column(-1.0), torch.zeros(1, 1))
    rollout = table_rollout(policy, column(advantage))
    rollout.log_probs -= log(ratio)
    config = learning_config(algorithm=PLAIN | {"epochs": 1} | algorithm)
    return slopes(make_ppo(policy, config), rollout)[0].item()


@pytest.mark.parametrize(
    ("setting", "ratio", "advantage", "slope"),
    # d(-r A) / d log r = -r A, or 0 where the ratio is clipped.
    [
        ({"clip_high": 0.3}, 1.4, 2.0, 0.0),
        ({"clip_high": 0.5}, 1.4, 2.0, -1.4 * 2),
        ({"clip_low": 0.2}, 0.75, -2.0, 0.0),
        ({"clip_low": 0.3}, 0.75, -2.0, 0.75 * 2),
        ({"dual_clip": None}, 4.0, -2.0, 4 * 2),
        ({"dual_clip": 5.0}, 4.0, -2.0, 4 * 2),
        ({"dual_clip": 3.0}, 4.0, -2.0, 0.0),
    ],
)
def test_bounds_of_the_ratio(setting: dict[str, Any], ratio: float, advantage: float, slope: float):
    assert policy_slope(ratio, advantage, **setting) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize(("cap", "slope"), [(2.0, -2.0 * 2), (5.0, -4.0 * 2)])
def test_the_weight_of_stale_data_is_capped(cap: float, slope: float):
    """At the proximal policy the ratio is 1; data of version 1 is weighed by 4, or by the cap."""
    policy = TablePolicy(column(-1.0), torch.zeros(1, 1))
    rollout = table_rollout(policy, column(2.0), versions=torch.tensor([[1]]))
    rollout.log_probs -= log(4.0)
    config = learning_config(algorithm=PLAIN | {"decoupled": True, "stale_weight_cap": cap})
    assert slopes(make_ppo(policy, config), rollout)[0].item() == pytest.approx(slope)


def test_the_entropy_bonus():
    policy = TablePolicy(column(-1.0, -2.0), torch.zeros(2, 1))
    config = learning_config(algorithm=PLAIN | {"entropy_coefficient": 0.3})
    entropy = slopes(make_ppo(policy, config), table_rollout(policy, torch.zeros(1, 2, 1)))[1]
    assert entropy.flatten().tolist() == pytest.approx([-0.3 / 2] * 2)


@pytest.mark.parametrize(("weighed", "long", "short"), [(True, 1 / 6, 1 / 2), (False, 1 / 4, 1 / 4)])
def test_trajectory_weights(weighed: bool, long: float, short: float):
    """A success of one action and a failure of three have advantages of 1 and -1: each action counts a quarter, or each
    episode a half. The last two places of the short episode are not played.
    """
    policy = TablePolicy(torch.full((6, 1, 1), -1.0))
    rollout = group_rollout(policy, [1, 3], [2.0, 0.0], [4, 4])
    algorithm = {"kind": "grpo", "estimator": "dr_grpo", "group_size": 2, "trajectory_weights": weighed}
    found = slopes(make_ppo(policy, learning_config(algorithm=PLAIN | algorithm), None), rollout)[0]
    assert found.reshape(3, 2).tolist() == [pytest.approx(row) for row in ([-short, long], [0, long], [0, long])]


def valued(**sections: dict[str, Any]) -> list[float]:
    """The loss's slopes by two values, which are 1 and were 0.5, of decisions of two actions with three dimensions each
    that earn 3 and 9. The last action was not played.
    """
    policy = TablePolicy(torch.full((2, 2, 3), -1.0), torch.full((2, 1), 1.0))
    played = torch.tensor([[[True, True], [True, False]]])
    ended = torch.tensor([[[False, True], [True, False]]])
    rewards = torch.tensor([[[1.0, 2.0], [9.0, 0.0]]])
    rollout = table_rollout(policy, rewards, valid=played, terminated=ended, values=torch.full((1, 2, 1), 0.5))
    algorithm = PLAIN | {"reward_level": "chunk"}
    return slopes(make_ppo(policy, learning_config(algorithm=algorithm, **sections)), rollout)[2].flatten().tolist()


def test_the_value_loss_has_its_own_entries_and_coefficient():
    """The mean is over 2 values, not over the 9 tokens that were played: (1 - 3) / 2 and (1 - 9) / 2."""
    far = {"clip": 100.0, "huber_delta": 100.0}
    assert valued(critic=far | {"coefficient": 1.0}) == pytest.approx([-1.0, -4.0])
    assert valued(critic=far | {"coefficient": 0.25}) == pytest.approx([-0.25, -1.0])


def test_bounds_of_the_value_loss():
    """Beyond an error of 4 it is linear. A value that moved by 0.5 towards its return, beyond 0.2, has no slope."""
    assert valued(critic={"clip": 100.0, "huber_delta": 4.0, "coefficient": 1.0}) == pytest.approx([-1.0, -2.0])
    assert valued(critic={"clip": 0.2, "huber_delta": 100.0, "coefficient": 1.0}) == [0.0, 0.0]


def referred(estimator: str, target: float | None = None) -> tuple[PPO, Any]:
    """Two decisions whose log-probs are 0.5 above and 2 below those of the reference, and 0.1 above the rollout's."""
    policy = TablePolicy(column(-1.0, -3.0))
    rollout = table_rollout(policy, torch.zeros(1, 2, 1))
    rollout.log_probs -= 0.1
    algorithm = {"kind": "grpo", "group_size": 1, "estimator": "reinforce_pp", "epochs": 1}
    algorithm |= {"reference": {"coefficient": 0.5, "estimator": estimator, "target": target}}
    config = learning_config(algorithm=algorithm, optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})
    return make_ppo(policy, config, None, TablePolicy(column(-1.5, -1.0))), rollout


@pytest.mark.parametrize(
    ("estimator", "divergence", "slope"),
    # k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d, with slopes d, d and 1 - exp(-d).
    [
        ("k1", [0.5, -2.0], [0.5, -2.0]),
        ("k2", [0.125, 2.0], [0.5, -2.0]),
        ("k3", [exp(-0.5) - 0.5, exp(2) - 3], [1 - exp(-0.5), 1 - exp(2)]),
    ],
)
def test_the_divergence_is_that_of_the_policy_from_the_reference(
    estimator: str, divergence: list[float], slope: list[float]
):
    ppo, rollout = referred(estimator)
    found = slopes(ppo, rollout)[0].flatten().tolist()
    assert found == pytest.approx([0.5 * x / 2 for x in slope])
    metrics = ppo.update([rollout], iteration=4)
    assert metrics["update/reference_kl"] == pytest.approx(sum(divergence) / 2)
    assert metrics["update/reference_coefficient"] == 0.5


def test_the_adaptive_coefficient_follows_the_divergence_and_weighs_the_next_update():
    """The divergence by k2 is (0.125 + 2) / 2 = 1.0625, a tenth above a target of 1.0625 / 1.1."""
    ppo, rollout = referred("k2", target=1.0625 / 1.1)
    first = ppo.update([rollout], iteration=3)
    assert first["update/approximate_kl"] == pytest.approx(exp(0.1) - 1.1, abs=1e-6), "another number"
    coefficient = 0.5 * (1 + 0.1 * 0.1)
    found = slopes(ppo, rollout)[0].flatten().tolist()
    assert found == pytest.approx([coefficient * x / 2 for x in (0.5, -2.0)])
    assert ppo.state_dict()["reference_coefficient"] == pytest.approx(coefficient * (1 + 0.1 * 0.1))


def moved(*iterations: int, rewards: tuple[float, ...] = (2.0,), **sections: dict[str, Any]) -> tuple[float, float]:
    """How far updates of these iterations move a log-prob and a value, which begin at -1 and 4."""
    policy = TablePolicy(column(-1.0), torch.full((1, 1), 4.0))
    config = learning_config(
        algorithm=PLAIN | {"epochs": 1},
        critic={"warmup_iterations": 1, "learning_rate": 0.01},
        optimizer={"learning_rate": 0.1, "weight_decay": 0.0} | sections.get("optimizer", {}),
    ).model_copy(update={"iterations": 8})
    ppo = make_ppo(policy, config)
    for iteration, reward in zip(iterations, rewards, strict=True):
        ppo.update([table_rollout(policy, column(reward))], iteration)
    return policy.log_probs.item() + 1, policy.value_head[0].item() - 4


@pytest.mark.parametrize(("iteration", "share"), [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0), (5, 0.6), (7, 0.2)])
def test_the_schedule_reaches_the_optimizer(iteration: int, share: float):
    """AdamW's first step is the rate, against the slope's sign: the advantage of 2 - 4 lowers log-prob and value."""
    policy, value = moved(iteration, optimizer={"warmup_iterations": 2, "final_share": 0.2})
    assert policy == pytest.approx(-0.1 * share, abs=1e-5)
    assert value == pytest.approx(-0.01, abs=1e-5), "the critic's rate is its own, and constant"


def test_the_shape_of_the_schedule():
    """Iteration 3 is a third of the way from 1 to 7: a half cosine has fallen by a quarter of 0.8."""
    assert moved(3, optimizer={"final_share": 0.2, "schedule": "cosine"})[0] == pytest.approx(-0.1 * 0.8, abs=1e-5)


def test_weight_decay():
    """A log-prob of -1 decays by 0.1 * 0.5 before the step of 0.1."""
    assert moved(3, optimizer={"weight_decay": 0.5})[0] == pytest.approx(0.05 - 0.1, abs=1e-5)


def test_moments():
    """Advantages of -2 and, as the value is 3.99 by then, of 2. Without memory the second step undoes the first. Else
    the first moment is (0.9 * 0.1 * 2 - 0.1 * 2) / (1 - 0.81) = -0.02 / 0.19, and the second moment is 4.
    """
    back = 0.1 * 0.02 / 0.19 / 2
    for betas, wanted in {(0.0, 0.0): 0.0, (0.9, 0.999): back - 0.1}.items():
        found, _ = moved(3, 4, rewards=(2.0, 5.99), optimizer={"betas": betas})
        assert found == pytest.approx(wanted, abs=1e-5)
