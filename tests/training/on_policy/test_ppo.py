"""Updates by PPO: what they change, what must not change them, and where they stop."""

import copy
import math

import pytest
import torch

from gaussian_policy import GaussianPolicy
from miniature import learning_config, make_rollout
from treadle.errors import ConfigError, DivergenceError
from treadle.policies.critic import PrivilegedCritic
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.sampling import Sampling
from treadle.training.schedule import draw_minibatches
from update_samples import STATE, JointGaussian, changed, gradients, make_ppo, weights


@pytest.mark.parametrize("level", ["token", "action", "chunk"])
def test_gradients_do_not_depend_on_the_micro_batch(base: OpenVLAOFT, level: str):
    found = []
    # Four optimizer steps at a rate that leaves the policy where it was.
    for micro in (3, 64):
        policy = copy.deepcopy(base)
        if level == "chunk":
            torch.manual_seed(0)
            policy.add_value_head(1)
        config = learning_config(
            algorithm={
                "micro_batch": micro,
                "epochs": 2,
                "ratio_level": level,
                "reward_level": "chunk" if level == "chunk" else "action",
                "entropy_coefficient": 0.1,
            },
            optimizer={"learning_rate": 1e-12},
            critic={"learning_rate": 1e-12},
        )
        found.append(gradients(make_ppo(policy, config), make_rollout(policy)))
    assert len(found[0]) == len(found[1]) == 4, "12 samples in minibatches of 8: the remainder of 4 is a step, too"
    for small, large in zip(*found, strict=True):
        size = max(float(x.abs().max()) for x in large)
        assert size > 1e-2
        for one, other in zip(small, large, strict=True):
            assert torch.allclose(one, other, atol=1e-5 * size, rtol=1e-4), size


def test_metrics_do_not_depend_on_the_micro_batch(base: OpenVLAOFT):
    found = []
    for micro in (3, 64):
        policy = copy.deepcopy(base)
        ppo = make_ppo(policy, learning_config(algorithm={"micro_batch": micro, "entropy_coefficient": 0.1}))
        found.append(ppo.update([make_rollout(policy)], iteration=3))
    names = [name for name in found[0] if not name.startswith("time/") and name != "update/log_prob_gap"]
    assert {"update/policy_loss", "update/approximate_kl", "update/entropy", "critic/loss"} <= set(names)
    for name in names:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-5), name


def permutations(seed: int) -> dict[tuple[int, int], tuple[int, ...]]:
    keys = [(iteration, epoch) for iteration in range(3) for epoch in (-3, -2, -1, 0, 1, 2)]
    return {key: tuple(torch.cat(list(draw_minibatches(20, 8, seed, *key))).tolist()) for key in keys}


def test_each_epoch_of_each_iteration_has_a_permutation_of_its_own():
    one, again, other = (permutations(seed) for seed in (0, 0, 1))
    assert one == again
    assert len({*one.values(), *other.values()}) == 36
    assert all(sorted(rows) == list(range(20)) for rows in one.values())


def test_frozen_vision_stays(policy: OpenVLAOFT):
    before = weights(policy)
    make_ppo(policy, learning_config()).update([make_rollout(policy)], iteration=3)
    assert changed(policy, before) == {"language_model", "proprio_projector", "value_head"}


def test_free_vision_learns(policy: OpenVLAOFT):
    ppo = make_ppo(policy, learning_config(policy={"freeze_vision": False}))
    rollout = make_rollout(policy)
    frames = torch.randint(0, 256, (3, 4, 1, 32, 32, 3), dtype=torch.uint8)
    assert isinstance(rollout.inputs, PrismaticInputs)
    rollout.inputs.features, rollout.inputs.frames = None, frames
    before = weights(policy)
    ppo.update([rollout], iteration=3)
    assert {"vision_backbone", "projector"} <= changed(policy, before)


def test_tokens_of_frozen_dimensions_have_no_influence(base: OpenVLAOFT):
    found = []
    for dimension in (None, 1, 2):
        policy = copy.deepcopy(base)
        rollout = make_rollout(policy)
        if dimension is not None:
            rollout.choices[..., dimension::3] = policy.codec.first_id + 7
            rollout.log_probs[..., dimension] -= 3
        config = learning_config(policy={"frozen_dimensions": (1,)}, algorithm={"entropy_coefficient": 0.1})
        found.append(gradients(make_ppo(policy, config), rollout)[0])
    plain, frozen, free = found
    assert all(torch.equal(one, other) for one, other in zip(plain, frozen, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(plain, free, strict=True))


def test_dimensions_that_never_move_are_frozen_by_themselves(base: OpenVLAOFT):
    """Their token says the same number whatever it is. So nothing must be frozen by number, which would freeze what
    another checkpoint moves.
    """
    found = []
    for still, frozen in ((None, (1,)), (1, ())):
        policy = copy.deepcopy(base)
        if still is not None:
            policy.codec.scale.high[still] = policy.codec.scale.low[still]
        config = learning_config(policy={"frozen_dimensions": frozen})
        found.append(gradients(make_ppo(policy, config), make_rollout(policy))[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def gaussian(kind: type[GaussianPolicy] = GaussianPolicy) -> GaussianPolicy:
    torch.manual_seed(0)
    return kind(proprioception_dim=7, action_dim=3, value_outputs=1)


def test_frozen_dimensions_need_log_probs_of_each_dimension():
    algorithm = {"reward_level": "chunk"}
    with pytest.raises(ConfigError, match=r"policy.frozen_dimensions: found \[1\].*no log-probs of its own.*use \[\]"):
        make_ppo(gaussian(JointGaussian), learning_config(policy={"frozen_dimensions": (1,)}, algorithm=algorithm))
    make_ppo(gaussian(), learning_config(policy={"frozen_dimensions": (1,)}, algorithm=algorithm))


def test_rewards_per_action_need_log_probs_of_each_action():
    with pytest.raises(ConfigError, match=r"algorithm.reward_level 'action'.*a chunk of 2 actions; use .*'chunk'"):
        make_ppo(gaussian(JointGaussian), learning_config())
    make_ppo(gaussian(), learning_config())


def test_one_set_of_log_probs_for_a_chunk_is_a_ratio_per_chunk():
    """Where all of a chunk is played, a joint log-prob has the gradient that the sum of its parts has."""
    found = []
    for kind, level in ((JointGaussian, "token"), (GaussianPolicy, "chunk")):
        policy = gaussian(kind)
        rollout = make_rollout(policy)
        rollout.valid[:] = True
        settings = {"reward_level": "chunk", "ratio_level": level, "entropy_coefficient": 0.1}
        ppo = make_ppo(policy, learning_config(algorithm=settings))
        found.append(gradients(ppo, rollout))
    assert len(found[0]) == len(found[1]) == 2
    for joint, parts in zip(*found, strict=True):
        assert max(float(x.abs().max()) for x in parts) > 1e-2
        for one, other in zip(joint, parts, strict=True):
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dimensions", [(3,), (0, 1, 2)])
def test_frozen_dimensions_must_exist_and_leave_one(policy: OpenVLAOFT, dimensions: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"policy.frozen_dimensions: found \[.*0 to 2"):
        make_ppo(policy, learning_config(policy={"frozen_dimensions": dimensions}))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.7), Sampling(top_k=5), Sampling(temperature=0.6, top_p=0.8)]
)
def test_trainer_and_rollout_agree_on_log_probs(policy: OpenVLAOFT, sampling: Sampling):
    settings = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    ppo = make_ppo(policy, learning_config(policy={"sampling": settings}))
    metrics = ppo.update([make_rollout(policy, sampling=sampling)], iteration=3)
    assert metrics["update/log_prob_gap"] < 1e-4
    other = make_rollout(policy, sampling=Sampling(temperature=2.5))
    assert ppo.update([other], iteration=3)["update/log_prob_gap"] > 0.1


@pytest.mark.parametrize("kind", ["value_head", "privileged"])
@pytest.mark.parametrize("broken", ["reward", "log_probs"])
def test_divergence_leaves_weights_as_they_were(policy: OpenVLAOFT, kind: str, broken: str):
    privileged = PrivilegedCritic(STATE, 2, 8)
    config = learning_config(critic={"kind": kind}, algorithm={"minibatch": 64, "micro_batch": 64})
    ppo = make_ppo(policy, config, privileged if kind == "privileged" else None)
    rollout = make_rollout(policy)
    getattr(rollout, broken)[0, 0, 0] = math.nan
    before, critic_before = weights(policy), copy.deepcopy(privileged.state_dict())
    with pytest.raises(DivergenceError, match=rf"rollout.{broken} is nan: training stopped"):
        ppo.update([rollout], iteration=3)
    assert not changed(policy, before)
    if broken == "reward":
        assert all(torch.equal(critic_before[name], x) for name, x in privileged.state_dict().items())
    # The next update is not spoilt by gradients that were left over.
    ppo.update([make_rollout(policy)], iteration=3)
    assert all(torch.isfinite(x).all() for x in policy.state_dict().values())


def test_an_infinite_gradient_diverges(policy: OpenVLAOFT):
    ppo = make_ppo(policy, learning_config())
    next(iter(ppo.trained)).register_hook(lambda gradient: gradient / 0)
    before = weights(policy)
    with pytest.raises(DivergenceError, match=r"gradient of the policy, \w[\w.]+weight, is (nan|infinite)"):
        ppo.update([make_rollout(policy)], iteration=3)
    assert not changed(policy, before)


def test_target_kl_stops_after_the_epoch_that_passes_it(base: OpenVLAOFT):
    steps = []
    for target in (None, 1e9, 1e-9):
        policy = copy.deepcopy(base)
        config = learning_config(
            algorithm={"epochs": 3, "minibatch": 4, "target_kl": target}, optimizer={"learning_rate": 3e-3}
        )
        steps.append(make_ppo(policy, config).update([make_rollout(policy)], iteration=3)["update/steps"])
    assert steps == [9, 9, 3]


def test_the_learning_rate_grows_then_falls(policy: OpenVLAOFT):
    """One iteration of critic warm-up, two of growth in thirds, then from 1 down to 0.2 in four steps of 0.2."""
    config = learning_config(
        optimizer={"learning_rate": 1.0, "warmup_iterations": 2, "final_share": 0.2}, critic={"warmup_iterations": 1}
    ).model_copy(update={"iterations": 8})
    ppo = make_ppo(policy, config)
    rates = [ppo._learning_rate(iteration) for iteration in range(8)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_learning_rate_is_constant_by_default(policy: OpenVLAOFT):
    ppo = make_ppo(policy, learning_config())
    assert {ppo._learning_rate(iteration) for iteration in range(100)} == {1e-4}


def test_gradients_are_clipped(policy: OpenVLAOFT):
    config = learning_config(optimizer={"gradient_norm": 1e-3})
    for step in gradients(make_ppo(policy, config), make_rollout(policy)):
        # Policy and critic are clipped apart, to the same norm.
        assert torch.cat([x.flatten() for x in step]).norm() < 1.5e-3


def test_a_restored_ppo_makes_the_same_update(base: OpenVLAOFT):
    policy, critic = copy.deepcopy(base), PrivilegedCritic(STATE, 2, 8)
    config = learning_config(critic={"kind": "privileged"})
    ppo = make_ppo(policy, config, critic)
    rollout = make_rollout(policy)
    ppo.update([rollout], 0)
    twin, twin_critic = copy.deepcopy(policy), PrivilegedCritic(STATE, 2, 8)
    restored = make_ppo(twin, config, twin_critic)
    restored.load_state_dict(copy.deepcopy(ppo.state_dict()))
    ppo.update([rollout], 1)
    restored.update([rollout], 1)
    assert not changed(twin, weights(policy))
    assert all(torch.equal(critic.state_dict()[name], x) for name, x in twin_critic.state_dict().items())


def test_a_gap_between_rollout_and_trainer_raises_the_alarm(policy: OpenVLAOFT):
    policy.add_value_head(2)
    ppo = make_ppo(policy, learning_config())
    rollout = make_rollout(policy)
    metrics = ppo.update([rollout], iteration=3)
    assert not ppo.alarms(metrics)
    rollout = make_rollout(policy)
    rollout.log_probs += 0.1
    metrics = ppo.update([rollout], iteration=3)
    assert metrics["update/log_prob_gap_mean"] == pytest.approx(0.1, abs=1e-3)
    (warning,) = ppo.alarms(metrics).values()
    assert "differ by 0.1 nats" in warning
