"""What critics learn, and when."""

import copy

import pytest
import torch
from torch import Tensor, nn

from miniature import learning_config, make_rollout
from table_policy import TablePolicy, table_rollout
from treadle.policies.critic import PrivilegedCritic
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.on_policy.critic_fit import CriticFit
from update_samples import CPU, STATE, changed, make_ppo, weights


def test_warm_up_trains_the_value_head_only(policy: OpenVLAOFT):
    ppo = make_ppo(policy, learning_config(critic={"warmup_iterations": 1}))
    before = weights(policy)
    ppo.update([make_rollout(policy)], iteration=0)
    assert changed(policy, before) == {"value_head"}
    assert not any(p in ppo.optimizer.state for p in ppo.trained), "no moments either"
    ppo.update([make_rollout(policy)], iteration=1)
    assert "language_model" in changed(policy, before)


def test_warm_up_trains_the_privileged_critic_only(policy: OpenVLAOFT):
    critic = PrivilegedCritic(STATE, 2, 8)
    ppo = make_ppo(policy, learning_config(critic={"kind": "privileged", "warmup_iterations": 1}), critic)
    before, first = weights(policy), copy.deepcopy(critic.state_dict())
    metrics = ppo.update([make_rollout(policy)], iteration=0)
    assert not changed(policy, before)
    assert any(not torch.equal(first[name], tensor) for name, tensor in critic.state_dict().items())
    assert metrics["update/learning_rate"] == 0
    assert "update/policy_loss" not in metrics
    ppo.update([make_rollout(policy)], iteration=1)
    assert changed(policy, before) == {"language_model", "proprio_projector"}


@pytest.mark.parametrize("kind", ["value_head", "privileged"])
def test_critics_learn_a_constant_return(policy: OpenVLAOFT, kind: str):
    """Every decision ends its episode with a reward of 1, so each value should become 1."""
    policy.add_value_head(1)
    critic = None if kind == "value_head" else PrivilegedCritic(STATE, 1, 8)
    config = learning_config(
        algorithm={"reward_level": "chunk", "minibatch": 6},
        critic={"kind": kind, "learning_rate": 0.02, "warmup_iterations": 50, "epochs": 2},
    )
    ppo = make_ppo(policy, config, critic)
    rollout = make_rollout(policy)
    rollout.reward = rollout.reward * 0
    rollout.reward[..., 0] = 1
    rollout.terminated = torch.zeros_like(rollout.terminated)
    rollout.terminated[..., 0] = True
    rollout.truncated, rollout.valid = torch.zeros_like(rollout.truncated), rollout.terminated.clone()
    rollout.final_values = torch.zeros_like(rollout.final_values)
    losses = []
    for iteration in range(20):
        with torch.no_grad():
            inputs = rollout.inputs.of({name: x.flatten(0, 1) for name, x in rollout.inputs.tensors().items()})
            values = policy.values(inputs) if critic is None else critic(rollout.state.flatten(0, 1))
            rollout.values = values.unflatten(0, (3, 4))
        metrics = ppo.update([rollout], iteration)
        assert metrics["critic/mean_return"] == pytest.approx(1.0)
        losses.append(metrics["critic/loss"])
    assert (rollout.values - 1).abs().max() < 0.15
    assert losses[-1] < 0.1 * losses[0]


class FirstNumber(nn.Module):
    """Values the first number of the first state."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, states: Tensor) -> Tensor:
        return self.scale * states[:, :1, 0]


@pytest.mark.parametrize(("bootstrap", "final"), [("truncation", [8.0, 0.0, 0.0]), ("always", [8.0, 9.0, 0.0])])
def test_a_network_values_what_is_bootstrapped_and_what_follows(bootstrap: str, final: list[float]):
    """Three slots of one decision: truncated after it, terminated, going on. States are the number of the row."""
    policy = TablePolicy(torch.full((3, 1, 1), -1.0))
    flags = torch.eye(3, dtype=torch.bool)[:, None, :, None]
    states = torch.tensor([[[8.0], [9.0], [7.0]]])
    rollout = table_rollout(
        policy,
        torch.zeros(1, 3, 1),
        truncated=flags[0],
        terminated=flags[1],
        final_states=states,
        next_states=torch.tensor([[0.0], [0.0], [5.0]]),
    )
    config = learning_config(critic={"kind": "privileged"}, algorithm={"bootstrap": bootstrap})
    network = FirstNumber()
    fit = CriticFit(network, config, CPU)
    valued = fit.value(rollout)
    assert valued.values.tolist() == [[[0.0], [1.0], [2.0]]]
    assert valued.final_values.tolist() == [final]
    assert valued.next_values[2] == 5
    with torch.no_grad():
        network.scale.fill_(2)
    assert fit.value(rollout).values.tolist() == [[[0.0], [2.0], [4.0]]], "as the network is now"
    assert not rollout.values.any(), "the rollout itself is as it was"


def test_a_head_valued_while_it_acted(policy: OpenVLAOFT):
    rollout = make_rollout(policy)
    assert CriticFit(None, learning_config(), CPU).value(rollout) is rollout


def test_what_a_network_learns_from_is_its_own_values(policy: OpenVLAOFT):
    """Whatever values came with the rollout."""
    config = learning_config(critic={"kind": "privileged"})
    found = []
    for noise in (0.0, 100.0):
        torch.manual_seed(3)
        learner, critic = copy.deepcopy(policy), PrivilegedCritic(STATE, 2, 8)
        rollout = make_rollout(learner)
        for name in ("values", "final_values", "next_values"):
            setattr(rollout, name, getattr(rollout, name) + noise)
        found.append((make_ppo(learner, config, critic).update([rollout], 3), weights(learner)))
    (one, first), (other, second) = found
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {k: x for k, x in one.items() if not k.startswith("time/")} == {
        k: x for k, x in other.items() if not k.startswith("time/")
    }
