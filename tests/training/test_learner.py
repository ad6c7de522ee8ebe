"""Updates: advantages by hand, and what must not change a gradient."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from fakes import scenario
from miniature import learning_config, make_policy, make_rollout
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.errors import ConfigError, DivergenceError
from treadle.policies.critic import Critic, PrivilegedCritic, ValueHeadCritic
from treadle.policies.openvla_oft import OpenVLAOFT
from treadle.policies.protocol import Inputs, Sampling
from treadle.training.learner import Learner
from treadle.training.samples import Samples
from treadle.training.samples import estimate_advantages as estimate
from treadle.training.schedule import draw_minibatches

CPU = torch.device("cpu")
STATE = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    torch.manual_seed(0)
    policy = make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)
    policy.add_value_head(2, hidden=(16,))
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.last.weight, std=0.3)
    return policy


@pytest.fixture
def policy(base: OpenVLAOFT) -> OpenVLAOFT:
    return copy.deepcopy(base)


def make_learner(policy: OpenVLAOFT, config: TrainConfig, critic: Critic | None = None) -> Learner:
    return Learner(policy, critic or ValueHeadCritic(policy), config, CPU)


def weights(policy: OpenVLAOFT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def changed(policy: OpenVLAOFT, before: dict[str, torch.Tensor]) -> set[str]:
    """Top-level parts of the policy whose weights differ from `before`."""
    after = policy.state_dict()
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def gradients(learner: Learner, rollout: Rollout) -> list[list[torch.Tensor]]:
    """The gradients of each optimizer step of an update."""
    seen: list[list[torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    learner.optimizer.register_step_pre_hook(keep)
    learner.update([rollout], iteration=3)
    return seen


def hand_rollout(values: list[list[float]]) -> Rollout:
    """Two decisions of two actions in one slot: the first ends an episode by truncation, the second goes on."""
    flags = torch.zeros(2, 1, 2, dtype=torch.bool)
    truncated, valid = flags.clone(), ~flags
    truncated[0, 0, 0], valid[0, 0, 1] = True, False
    ids = torch.zeros(1, 1, dtype=torch.long)
    return Rollout(
        inputs=[Inputs(ids, ids == 0)] * 2,
        tokens=torch.zeros(2, 1, 4, dtype=torch.long),
        log_probs=torch.zeros(2, 1, 4),
        values=torch.tensor(values)[:, None],
        state=torch.zeros(2, 1, 2, 0),
        reward=torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]]),
        terminated=flags,
        truncated=truncated,
        valid=valid,
        final_values=torch.tensor([[10.0], [0.0]]),
        next_values=torch.tensor([6.0]),
        versions=torch.zeros(2, 1, dtype=torch.long),
        scenarios=np.full((2, 1), scenario(0)),
        episodes=[],
        seconds={},
    )


def estimate_advantages(rollout: Rollout, config: TrainConfig) -> Samples:
    return estimate([rollout], config.algorithm)


def halves(level: str, *, normalize: bool = False) -> TrainConfig:
    return learning_config(
        algorithm={"gamma": 0.5, "gae_lambda": 0.5, "reward_level": level, "normalize_advantages": normalize}
    )


def test_advantages_per_action():
    """The truncated action: 1 + 10/2 - 1. The last two: 2 + 4/2 - 3 = 1 and 0 + 6/2 - 4 = -1, so 1 - 1/4 and -1."""
    samples = estimate_advantages(hand_rollout([[1.0, 2.0], [3.0, 4.0]]), halves("action"))
    assert samples.advantages.tolist() == [[5.0, 0.0], [0.75, -1.0]]
    assert samples.returns.tolist() == [[6.0, 0.0], [3.75, 3.0]]
    assert len(samples.inputs) == len(samples.tokens) == 2


def test_advantages_per_chunk():
    """1 + 10/2 - 1 and 2 + 6/2 - 3."""
    samples = estimate_advantages(hand_rollout([[1.0], [3.0]]), halves("chunk"))
    assert samples.advantages.tolist() == [5.0, 2.0]
    assert samples.returns.tolist() == [[6.0], [5.0]]


def test_a_termination_is_followed_by_nothing():
    rollout = hand_rollout([[1.0], [3.0]])
    rollout.terminated, rollout.truncated = rollout.truncated, rollout.terminated
    rollout.final_values = torch.zeros(2, 1)
    assert estimate_advantages(rollout, halves("chunk")).advantages.tolist() == [0.0, 2.0]


def test_normalisation_is_over_the_valid_entries_of_the_whole_rollout():
    samples = estimate_advantages(hand_rollout([[1.0, 2.0], [3.0, 4.0]]), halves("action", normalize=True))
    raw = torch.tensor([5.0, 0.75, -1.0])
    wanted = (raw - raw.mean()) / raw.std(correction=0)
    assert torch.allclose(samples.advantages[samples.valid], wanted, atol=1e-4)
    assert samples.advantages[0, 1] == 0


def test_samples_are_time_major_like_their_inputs(base: OpenVLAOFT):
    rollout = make_rollout(base)
    samples = estimate_advantages(rollout, learning_config())
    assert torch.equal(samples.tokens[5], rollout.tokens[1, 1])
    assert samples.inputs.features is not None
    assert rollout.inputs[1].features is not None
    assert torch.equal(samples.inputs.features[5], rollout.inputs[1].features[1])


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
        found.append(gradients(make_learner(policy, config), make_rollout(policy)))
    assert len(found[0]) == len(found[1]) == 4, "12 samples in minibatches of 8: the remainder of 4 is a step, too"
    for small, large in zip(*found, strict=True):
        assert max(float(x.abs().max()) for x in large) > 1e-2
        for one, other in zip(small, large, strict=True):
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_metrics_do_not_depend_on_the_micro_batch(base: OpenVLAOFT):
    found = []
    for micro in (3, 64):
        policy = copy.deepcopy(base)
        learner = make_learner(policy, learning_config(algorithm={"micro_batch": micro, "entropy_coefficient": 0.1}))
        found.append(learner.update([make_rollout(policy)], iteration=3))
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
    make_learner(policy, learning_config()).update([make_rollout(policy)], iteration=3)
    assert changed(policy, before) == {"language_model", "proprio_projector", "value_head"}


def test_free_vision_learns(policy: OpenVLAOFT):
    learner = make_learner(policy, learning_config(policy={"freeze_vision": False}))
    rollout = make_rollout(policy)
    frames = torch.randint(0, 256, (4, 1, 32, 32, 3), dtype=torch.uint8)
    for inputs in rollout.inputs:
        inputs.features, inputs.frames = None, frames
    before = weights(policy)
    learner.update([rollout], iteration=3)
    assert {"vision_backbone", "projector"} <= changed(policy, before)


def test_tokens_of_frozen_dimensions_have_no_influence(base: OpenVLAOFT):
    found = []
    for dimension in (None, 1, 2):
        policy = copy.deepcopy(base)
        rollout = make_rollout(policy)
        if dimension is not None:
            rollout.tokens[..., dimension::3] = policy.codec.first_id + 7
            rollout.log_probs[..., dimension::3] -= 3
        config = learning_config(policy={"frozen_dimensions": (1,)}, algorithm={"entropy_coefficient": 0.1})
        found.append(gradients(make_learner(policy, config), rollout)[0])
    plain, frozen, free = found
    assert all(torch.equal(one, other) for one, other in zip(plain, frozen, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(plain, free, strict=True))


@pytest.mark.parametrize("dimensions", [(3,), (0, 1, 2)])
def test_frozen_dimensions_must_exist_and_leave_one(policy: OpenVLAOFT, dimensions: tuple[int, ...]):
    with pytest.raises(ConfigError, match=r"policy.frozen_dimensions: found \(.*0 to 2"):
        make_learner(policy, learning_config(policy={"frozen_dimensions": dimensions}))


def test_warm_up_trains_the_value_head_only(policy: OpenVLAOFT):
    learner = make_learner(policy, learning_config(critic={"warmup_iterations": 1}))
    before = weights(policy)
    learner.update([make_rollout(policy)], iteration=0)
    assert changed(policy, before) == {"value_head"}
    assert not any(p in learner.optimizer.state for p in learner._policy_parameters), "no moments either"
    learner.update([make_rollout(policy)], iteration=1)
    assert "language_model" in changed(policy, before)


def test_warm_up_trains_the_privileged_critic_only(policy: OpenVLAOFT):
    critic = PrivilegedCritic(STATE, 2, 8)
    learner = make_learner(policy, learning_config(critic={"kind": "privileged", "warmup_iterations": 1}), critic)
    before, first = weights(policy), copy.deepcopy(critic.state_dict())
    metrics = learner.update([make_rollout(policy)], iteration=0)
    assert not changed(policy, before)
    assert any(not torch.equal(first[name], tensor) for name, tensor in critic.state_dict().items())
    assert metrics["update/learning_rate"] == 0
    assert "update/policy_loss" not in metrics
    learner.update([make_rollout(policy)], iteration=1)
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
    learner = make_learner(policy, config, critic)
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
            pairs = zip(rollout.inputs, rollout.state, strict=True)
            rollout.values = torch.stack([critic(inputs, state) for inputs, state in pairs])
        metrics = learner.update([rollout], iteration)
        assert metrics["critic/mean_return"] == pytest.approx(1.0)
        losses.append(metrics["critic/loss"])
    assert (rollout.values - 1).abs().max() < 0.15
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.7), Sampling(top_k=5), Sampling(temperature=0.6, top_p=0.8)]
)
def test_trainer_and_rollout_agree_on_log_probs(policy: OpenVLAOFT, sampling: Sampling):
    settings = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    learner = make_learner(policy, learning_config(policy={"sampling": settings}))
    metrics = learner.update([make_rollout(policy, sampling=sampling)], iteration=3)
    assert metrics["update/log_prob_gap"] < 1e-4
    other = make_rollout(policy, sampling=Sampling(temperature=2.5))
    assert learner.update([other], iteration=3)["update/log_prob_gap"] > 0.1


@pytest.mark.parametrize("kind", ["value_head", "privileged"])
@pytest.mark.parametrize("broken", ["reward", "log_probs"])
def test_divergence_leaves_weights_as_they_were(policy: OpenVLAOFT, kind: str, broken: str):
    privileged = PrivilegedCritic(STATE, 2, 8)
    config = learning_config(critic={"kind": kind}, algorithm={"minibatch": 64, "micro_batch": 64})
    learner = make_learner(policy, config, privileged if kind == "privileged" else None)
    rollout = make_rollout(policy)
    getattr(rollout, broken)[0, 0, 0] = math.nan
    before, critic_before = weights(policy), copy.deepcopy(privileged.state_dict())
    with pytest.raises(DivergenceError, match=rf"rollout.{broken} is nan: training stopped"):
        learner.update([rollout], iteration=3)
    assert not changed(policy, before)
    if broken == "reward":
        assert all(torch.equal(critic_before[name], x) for name, x in privileged.state_dict().items())
    # The next update is not spoilt by gradients that were left over.
    learner.update([make_rollout(policy)], iteration=3)
    assert all(torch.isfinite(x).all() for x in policy.state_dict().values())


def test_an_infinite_gradient_diverges(policy: OpenVLAOFT):
    learner = make_learner(policy, learning_config())
    next(iter(learner._policy_parameters)).register_hook(lambda gradient: gradient / 0)
    before = weights(policy)
    with pytest.raises(DivergenceError, match=r"gradient of the policy, \w[\w.]+weight, is (nan|infinite)"):
        learner.update([make_rollout(policy)], iteration=3)
    assert not changed(policy, before)


def test_target_kl_stops_after_the_epoch_that_passes_it(base: OpenVLAOFT):
    steps = []
    for target in (None, 1e9, 1e-9):
        policy = copy.deepcopy(base)
        config = learning_config(
            algorithm={"epochs": 3, "minibatch": 4, "target_kl": target}, optimizer={"learning_rate": 3e-3}
        )
        steps.append(make_learner(policy, config).update([make_rollout(policy)], iteration=3)["update/steps"])
    assert steps == [9, 9, 3]


def test_the_learning_rate_grows_then_falls(policy: OpenVLAOFT):
    """One iteration of critic warm-up, two of growth in thirds, then from 1 down to 0.2 in four steps of 0.2."""
    config = learning_config(
        optimizer={"learning_rate": 1.0, "warmup_iterations": 2, "final_share": 0.2}, critic={"warmup_iterations": 1}
    ).model_copy(update={"iterations": 8})
    learner = make_learner(policy, config)
    rates = [learner._learning_rate(iteration) for iteration in range(8)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_learning_rate_is_constant_by_default(policy: OpenVLAOFT):
    learner = make_learner(policy, learning_config())
    assert {learner._learning_rate(iteration) for iteration in range(100)} == {1e-4}


def test_gradients_are_clipped(policy: OpenVLAOFT):
    config = learning_config(optimizer={"gradient_norm": 1e-3})
    for step in gradients(make_learner(policy, config), make_rollout(policy)):
        # Policy and critic are clipped apart, to the same norm.
        assert torch.cat([x.flatten() for x in step]).norm() < 1.5e-3


def test_a_restored_learner_makes_the_same_update(base: OpenVLAOFT):
    policy, critic = copy.deepcopy(base), PrivilegedCritic(STATE, 2, 8)
    config = learning_config(critic={"kind": "privileged"})
    learner = make_learner(policy, config, critic)
    rollout = make_rollout(policy)
    learner.update([rollout], 0)
    twin, twin_critic = copy.deepcopy(policy), PrivilegedCritic(STATE, 2, 8)
    restored = make_learner(twin, config, twin_critic)
    restored.load_state_dict(copy.deepcopy(learner.state_dict()))
    learner.update([rollout], 1)
    restored.update([rollout], 1)
    assert not changed(twin, weights(policy))
    assert all(torch.equal(critic.state_dict()[name], x) for name, x in twin_critic.state_dict().items())
