"""What GRPO, decoupling and the reference do to an update, and how much is collected for one."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fakes import scenario
from miniature import SCENARIOS, SUCCESSES, grouped, learning_config, make_policy, make_rollout
from rank_samples import on_threads
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.algorithm import Algorithm
from treadle.training.on_policy.batch import Batch, estimate_advantages
from treadle.training.on_policy.ppo import PPO
from treadle.training.ranks import Ranks
from update_samples import make_ppo

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


def test_grpo_updates_without_a_critic(policy: OpenVLAOFT, rollout: Rollout):
    before = copy.deepcopy(policy.state_dict())
    metrics = make_ppo(policy, config(), None).update([rollout], iteration=0)
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
    metrics = make_ppo(policy, config(), None).update([lost], iteration=3)
    assert metrics["update/steps"] == 0
    assert metrics["update/filtered_group_share"] == metrics["update/dead_token_share"] == 1
    assert all(torch.equal(before[name], x) for name, x in policy.state_dict().items())


def test_stale_data_is_anchored_at_the_present_policy(policy: OpenVLAOFT, rollout: Rollout):
    """Data of version 1 at iteration 3, drawn by a policy that since has changed; half of it is fresh."""
    rollout.versions[:2] = 1
    rollout.log_probs[:2] -= 1.0
    ppo = make_ppo(policy, config(decoupled=True, stale_weight_cap=4.0), None)
    samples = estimate_advantages([rollout], config().algorithm)
    batch = Batch(samples, samples, None)
    ppo._add_frozen_log_probs(batch, iteration=3)
    assert batch.proximal is not None
    fresh = samples.versions == 3
    assert torch.equal(batch.proximal[fresh], samples.log_probs[fresh])
    assert torch.allclose(batch.proximal[~fresh], samples.log_probs[~fresh] + 1, atol=1e-4)
    metrics = ppo.update([rollout], iteration=3)
    # Of 8 decisions that are trained, those of the first two steps are two versions old.
    assert 0 < metrics["update/staleness"] < 2
    assert metrics["update/stale_weight"] > 1.5
    assert metrics["update/log_prob_gap"] < 1e-4, "only fresh data tell of a gap"
    plain = make_ppo(policy, config(decoupled=False), None)
    batch = Batch(samples, samples, None)
    plain._add_frozen_log_probs(batch, iteration=3)
    assert batch.proximal is batch.reference is None


def test_the_reference_starts_equal_and_its_coefficient_adapts(policy: OpenVLAOFT, base: OpenVLAOFT, rollout: Rollout):
    reference = {"coefficient": 0.5, "estimator": "k3", "target": 1.0}
    settings = learning_config(algorithm=GRPO | {"reference": reference}, optimizer={"learning_rate": 1e-2})
    ppo = make_ppo(policy, settings, None, base)
    first = ppo.update([rollout], iteration=3)
    assert first["update/reference_kl"] == pytest.approx(0, abs=1e-6)
    assert first["update/reference_coefficient"] == 0.5
    second = ppo.update([rollout], iteration=4)
    assert second["update/reference_kl"] > 0
    assert second["update/reference_coefficient"] == pytest.approx(0.5 * (1 - 0.1 * 0.2))
    restored = make_ppo(copy.deepcopy(policy), settings, None, base)
    restored.load_state_dict(copy.deepcopy(ppo.state_dict()))
    one, other = (x.update([rollout], iteration=5) for x in (ppo, restored))
    assert {k: x for k, x in one.items() if "time/" not in k} == {k: x for k, x in other.items() if "time/" not in k}


def test_a_reference_pulls_the_policy_back(base: OpenVLAOFT, rollout: Rollout):
    """With advantages of next to nothing, a step lowers the divergence that an earlier one made."""
    moved = copy.deepcopy(base)
    make_ppo(moved, learning_config(algorithm=GRPO, optimizer={"learning_rate": 1e-2}), None).update(
        [rollout], iteration=3
    )
    reference = {"coefficient": 100.0, "estimator": "k2"}
    settings = learning_config(algorithm=GRPO | {"reference": reference}, optimizer={"learning_rate": 1e-3})
    ppo = make_ppo(moved, settings, None, base)
    found = [ppo.update([rollout], iteration=3 + i)["update/reference_kl"] for i in range(4)]
    assert found[-1] < found[0]


def collected(ppo: PPO, rollouts: Sequence[Rollout]) -> int:
    """How many of the rollouts are taken for one update."""
    taken: list[Rollout] = []
    while ppo.wants_more(taken):
        taken.append(rollouts[len(taken)])
    return len(taken)


def refilled(policy: OpenVLAOFT, rollouts: Sequence[Rollout], **fields: Any) -> int:
    settings = config(filter=fields.pop("filter", {}), **fields)
    fresh = [replace(rollout, selected=None) for rollout in rollouts]
    return collected(make_ppo(policy, settings, None), fresh)


def test_the_batch_is_refilled_until_enough_groups_remain_or_the_limit(base: OpenVLAOFT):
    lost = grouped(base, [False] * 4, [1, 1, 2, 2])
    half = grouped(base, [False, True, False, False], [1, 1, 2, 2])
    full = grouped(base, [False, True, False, True], [1, 1, 2, 2])
    assert refilled(base, [half, full]) == 1, "no refills by default"
    assert refilled(base, [half, lost, half, full], filter={"refills": 5}) == 3
    assert refilled(base, [full, full], filter={"refills": 5}) == 1
    assert refilled(base, [lost] * 9, filter={"refills": 2}) == 3
    assert refilled(base, [half] * 9, rounds=2, filter={"refills": 5}) == 4


def test_ranks_agree_on_refills_and_count_the_groups_of_all(base: OpenVLAOFT):
    """Rank 0 has the groups that are all alike; alone it would refill up to the limit, and rank 1 not at all."""
    lost = grouped(base, [False] * 4, [1, 1, 2, 2])
    full = grouped(base, [False, True, False, True], [3, 3, 4, 4])
    settings = config(group_size=2, filter={"refills": 5})

    def taken(ranks: Ranks) -> int:
        own = [replace(lost if ranks.rank == 0 else full, selected=None) for _ in range(6)]
        return collected(make_ppo(copy.deepcopy(base), settings, None, None, ranks), own)

    # 2 of 4 groups remain of a rollout, so two rollouts have as many as one plays.
    assert on_threads(2, taken) == [2, 2]


def test_an_update_waits_for_its_rounds(base: OpenVLAOFT):
    """However many scenarios each of them plays."""
    rollouts = [make_rollout(base, 1, 2, seed=seed) for seed in range(4)]
    rollouts[0].scenarios[:, 1] = scenario(1)
    for rounds in (1, 3):
        ppo = make_ppo(base, learning_config(algorithm={"rounds": rounds}), None)
        assert collected(ppo, rollouts) == rounds


class OneEach(Algorithm):
    def update(self, rollouts: Sequence[Rollout], iteration: int) -> dict[str, float]:
        return {}

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return []


def test_an_algorithm_takes_one_rollout_by_default(base: OpenVLAOFT):
    algorithm = OneEach(make_ppo(base, config(), None).training)
    assert algorithm.wants_more([])
    assert not algorithm.wants_more([make_rollout(base, 1, 2)])
    assert (algorithm.state_dict(), algorithm.alarms({"update/log_prob_gap_mean": 9.0})) == ({}, {})
