"""What critics learn, and when."""

import copy

import pytest
import torch

from miniature import learning_config, make_rollout
from treadle.policies.critic import Critic, PrivilegedCritic, ValueHeadCritic
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from update_samples import STATE, changed, make_ppo, weights


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
    critic: Critic = ValueHeadCritic(policy) if kind == "value_head" else PrivilegedCritic(STATE, 1, 8)
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
            rollout.values = critic(inputs, rollout.state.flatten(0, 1)).unflatten(0, (3, 4))
        metrics = ppo.update([rollout], iteration)
        assert metrics["critic/mean_return"] == pytest.approx(1.0)
        losses.append(metrics["critic/loss"])
    assert (rollout.values - 1).abs().max() < 0.15
    assert losses[-1] < 0.1 * losses[0]
