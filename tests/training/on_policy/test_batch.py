"""From rollouts to samples: advantages by hand and of groups, weights, and what is said of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fakes import scenario
from miniature import SCENARIOS, SUCCESSES, grouped, learning_config, make_policy, make_rollout
from rank_samples import complaint, on_threads
from table_policy import TablePolicy, group_rollout
from treadle.algorithms.estimators import Estimate, Timeline
from treadle.config.on_policy import GRPOConfig, PPOConfig
from treadle.config.schema import TrainConfig
from treadle.data.rollout import Rollout
from treadle.errors import ConfigError
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.on_policy.batch import estimate_advantages, find_estimator, make_batch, measure_shares


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    return make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)


def grpo(**fields: Any) -> GRPOConfig:
    return GRPOConfig(group_size=3, **fields)


def hand_rollout(values: list[list[float]]) -> Rollout:
    """Two decisions of two actions in one slot: the first ends an episode by truncation, the second goes on."""
    flags = torch.zeros(2, 1, 2, dtype=torch.bool)
    truncated, valid = flags.clone(), ~flags
    truncated[0, 0, 0], valid[0, 0, 1] = True, False
    ids = torch.zeros(2, 1, 1, dtype=torch.long)
    return Rollout(
        inputs=PrismaticInputs(ids, ids == 0),
        choices=torch.zeros(2, 1, 4, dtype=torch.long),
        log_probs=torch.zeros(2, 1, 2, 2),
        values=torch.tensor(values)[:, None],
        state=torch.zeros(2, 1, 2, 0),
        reward=torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]]),
        terminated=flags,
        truncated=truncated,
        success=flags,
        valid=valid,
        final_values=torch.tensor([[10.0], [0.0]]),
        next_values=torch.tensor([6.0]),
        final_states=torch.zeros(2, 1, 0),
        next_states=torch.zeros(1, 0),
        versions=torch.zeros(2, 1, dtype=torch.long),
        scenarios=np.full((2, 1), scenario(0)),
        episodes=[],
        seconds={},
    )


def halves(level: str, *, normalize: bool = False) -> TrainConfig:
    return learning_config(
        algorithm={"gamma": 0.5, "gae_lambda": 0.5, "reward_level": level, "normalize_advantages": normalize}
    )


def test_advantages_per_action():
    """The truncated action: 1 + 10/2 - 1. The last two: 2 + 4/2 - 3 = 1 and 0 + 6/2 - 4 = -1, so 1 - 1/4 and -1."""
    samples = estimate_advantages([hand_rollout([[1.0, 2.0], [3.0, 4.0]])], halves("action").algorithm)
    assert samples.advantages.tolist() == [[5.0, 0.0], [0.75, -1.0]]
    assert samples.returns.tolist() == [[6.0, 0.0], [3.75, 3.0]]
    assert len(samples.inputs) == len(samples.choices) == 2


def test_advantages_per_chunk():
    """1 + 10/2 - 1 and 2 + 6/2 - 3."""
    samples = estimate_advantages([hand_rollout([[1.0], [3.0]])], halves("chunk").algorithm)
    assert samples.advantages.tolist() == [5.0, 2.0]
    assert samples.returns.tolist() == [[6.0], [5.0]]


def test_a_termination_is_followed_by_nothing():
    rollout = hand_rollout([[1.0], [3.0]])
    rollout.terminated, rollout.truncated = rollout.truncated, rollout.terminated
    rollout.final_values = torch.zeros(2, 1)
    assert estimate_advantages([rollout], halves("chunk").algorithm).advantages.tolist() == [0.0, 2.0]


def test_normalisation_is_over_the_valid_entries_of_the_whole_rollout():
    samples = estimate_advantages([hand_rollout([[1.0, 2.0], [3.0, 4.0]])], halves("action", normalize=True).algorithm)
    raw = torch.tensor([5.0, 0.75, -1.0])
    wanted = (raw - raw.mean()) / raw.std(correction=0)
    assert torch.allclose(samples.advantages[samples.valid], wanted, atol=1e-4)
    assert samples.advantages[0, 1] == 0


def test_samples_are_time_major_like_their_inputs(base: OpenVLAOFT):
    rollout = make_rollout(base)
    samples = estimate_advantages([rollout], learning_config().algorithm)
    assert torch.equal(samples.choices[5], rollout.choices[1, 1])
    assert {"features", "proprioception"} <= samples.inputs.tensors().keys()
    for name, tensor in rollout.inputs.tensors().items():
        assert torch.equal(samples.inputs.tensors()[name][5], tensor[1, 1]), name


def test_what_was_not_played_is_no_sample_and_every_played_action_has_its_episodes_advantage(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    samples = estimate_advantages([rollout], grpo())
    # Successes play 2 decisions, the others 3.
    assert len(samples) == 3 * 2 + 4 * 3
    trained = samples.take(samples.trained)
    assert len(trained) == 2 + 3 + 3
    # Scores 1 0 0: mean 1/3, sample deviation (1/3) ** 0.5.
    first, other = (2 / 3) * 3**0.5, (-1 / 3) * 3**0.5
    wanted = torch.tensor([first, other, other, first, other, other, other, other])
    assert torch.allclose(trained.advantages, wanted, atol=1e-5)
    assert trained.lengths.tolist() == [3, 6, 6, 3, 6, 6, 6, 6]
    assert trained.valid.sum(-1).tolist() == [2, 2, 2, 1, 2, 2, 2, 2]
    assert torch.equal(trained.choices[3], rollout.choices[1, 0])
    # Every episode's weights sum to a third of all.
    sums = trained.weights() * trained.valid.sum(-1)
    assert float(sums[[0, 3]].sum()) == pytest.approx(15 / 3)
    assert float(sums[[1, 4, 6]].sum()) == pytest.approx(15 / 3)


def test_shares_of_what_is_of_use(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    config = grpo()
    samples = estimate_advantages([rollout], config)
    shares = measure_shares([rollout], samples, config, torch.tensor([True, True, False]))
    assert shares["update/valid_share"] == pytest.approx((3 * 3 + 4 * 6) / 42)
    assert shares["update/filtered_group_share"] == pytest.approx(2 / 3)
    # Of 42 actions with 3 tokens, the 15 of the kept group have two tokens that are trained.
    assert shares["update/dead_token_share"] == pytest.approx(1 - 15 * 2 / (42 * 3))


def test_tokens_of_skipped_groups_are_dead_though_they_have_an_advantage(policy: OpenVLAOFT):
    """One success of three is kept, one of two is skipped: 3 + 6 + 6 of 30 actions, with two of three tokens."""
    rollout = grouped(policy, [True, False, False, True, False], [4, 4, 4, 7, 7])
    config = grpo(filter={"low": 0.1, "high": 0.4})
    samples = estimate_advantages([rollout], config)
    assert (samples.advantages != 0).all()
    shares = measure_shares([rollout], samples, config, torch.tensor([True, True, False]))
    assert shares["update/filtered_group_share"] == 1 / 2
    assert shares["update/dead_token_share"] == pytest.approx(1 - 15 * 2 / (30 * 3))


def test_actions_without_an_advantage_are_dead():
    """Of three actions that were played one has an advantage of 0, and a fourth was not played."""
    rollout = hand_rollout([[6.0, 2.0], [3.0, 4.0]])
    config = halves("action").algorithm
    samples = estimate_advantages([rollout], config)
    assert samples.advantages.tolist() == [[0.0, 0.0], [0.75, -1.0]]
    assert measure_shares([rollout], samples, config, torch.tensor([True, True])) == {
        "update/valid_share": 3 / 4,
        "update/dead_token_share": 2 / 4,
    }


@pytest.mark.parametrize("kind", ["truncated", "terminated"])
def test_either_ending_ends_an_episode_for_its_length(kind: str):
    rollout = hand_rollout([[1.0], [3.0]])
    if kind == "terminated":
        rollout.terminated, rollout.truncated = rollout.truncated, rollout.terminated
    samples = estimate_advantages([rollout], halves("chunk").algorithm)
    assert samples.lengths.tolist() == [1, 2]
    # Two episodes of 3 actions: 3 / 2 over the length.
    assert samples.weights().tolist() == [1.5, 0.75]


def test_a_batch_holds_all_for_the_critic_and_the_kept_groups_for_the_policy(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    settings, dimensions = grpo(), torch.tensor([True, True, False])
    batch = make_batch([rollout], settings, dimensions)
    assert (len(batch.samples), len(batch.trained)) == (18, 8)
    # 15 actions of 3 episodes: 5 over the episode's length, 3 or 6.
    assert batch.weights is not None
    assert batch.weights.tolist() == pytest.approx([5 / 3, 5 / 6, 5 / 6, 5 / 3, 5 / 6, 5 / 6, 5 / 6, 5 / 6])
    # Of the actions that were played, in the dimensions that are trained.
    played = rollout.log_probs[rollout.valid][:, dimensions]
    assert batch.shares == {
        "update/valid_share": pytest.approx(33 / 42),
        "update/filtered_group_share": pytest.approx(2 / 3),
        "update/dead_token_share": pytest.approx(1 - 15 * 2 / (42 * 3)),
        "update/log_prob_std": pytest.approx(float(played.std(correction=0)), rel=1e-5),
    }
    alike = make_batch([rollout], grpo(trajectory_weights=False), dimensions)
    assert alike.weights is None


def test_rollouts_of_one_update_are_normalised_together(policy: OpenVLAOFT):
    rollouts = [make_rollout(policy, 3, 4, seed=seed) for seed in (1, 2)]
    rollouts[1].reward *= 5
    config = PPOConfig()
    raw = [estimate_advantages([r], config.model_copy(update={"normalize_advantages": False})) for r in rollouts]
    entries = torch.cat([part.advantages[part.valid] for part in raw])
    both = estimate_advantages(rollouts, config)
    wanted = (entries - entries.mean()) / entries.std(correction=0)
    assert torch.allclose(both.advantages[both.valid], wanted, atol=1e-4)
    apart = estimate_advantages(rollouts[:1], config)
    assert not torch.allclose(both.advantages[:12], apart.advantages, atol=0.1)


def test_order_grows_with_rollout_decision_and_slot(policy: OpenVLAOFT):
    samples = estimate_advantages([make_rollout(policy, 3, 4, seed=seed) for seed in (1, 2)], PPOConfig())
    assert samples.order.dtype == torch.int64
    assert (samples.order.diff() > 0).all(), "samples are one rollout after another, and time-major"


def test_a_pair_that_two_ranks_share_is_refused():
    rollout = group_rollout(TablePolicy(torch.zeros(2, 1, 1)), [1, 1], [1.0, 0.0], [4, 4])
    config = GRPOConfig(group_size=2)
    for said in on_threads(2, lambda ranks: complaint(lambda: estimate_advantages([rollout], config, ranks))):
        assert said.startswith("RankError: Scenario(")
        assert "is played on ranks 0 and 1" in said
        assert "algorithm.group_size 2 neighbouring slots" in said


def test_skipped_groups_do_not_shift_the_normalisation(policy: OpenVLAOFT):
    config = grpo(estimator="reinforce_pp_baseline")
    whole = estimate_advantages([grouped(policy, SUCCESSES, SCENARIOS)], config)
    alone = estimate_advantages([grouped(policy, SUCCESSES[:3], SCENARIOS[:3])], config)
    assert torch.allclose(whole.take(whole.trained).advantages, alone.advantages)
    assert abs(float(alone.advantages.mean())) < 1e-5
    assert float(alone.advantages.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_one_value_for_a_chunk_of_actions_that_are_rewarded_apart(policy: OpenVLAOFT):
    rollout = make_rollout(policy, 3, 4)
    config = PPOConfig(value_level="chunk", normalize_advantages=False)
    samples = estimate_advantages([rollout], config)
    repeated = replace(rollout, values=rollout.values[..., :1].expand(3, 4, 2).contiguous())
    wanted = estimate_advantages([repeated], config.model_copy(update={"value_level": None}))
    assert torch.equal(samples.advantages, wanted.advantages)
    means = (wanted.returns * wanted.valid).sum(-1) / wanted.valid.sum(-1)
    assert torch.allclose(samples.returns[:, 0], means)


def rewards_alone(timeline: Timeline) -> Estimate:
    return Estimate(torch.where(timeline.valid, timeline.rewards * timeline.gamma, 0))


def test_an_estimator_of_ones_own(policy: OpenVLAOFT, monkeypatch: pytest.MonkeyPatch):
    import fakes

    monkeypatch.setattr(fakes, "rewards_alone", rewards_alone, raising=False)
    config = PPOConfig(estimator="fakes:rewards_alone", normalize_advantages=False, gamma=0.5)
    rollout = make_rollout(policy, 3, 4)
    samples = estimate_advantages([rollout], config)
    assert torch.equal(samples.advantages, rollout.reward.flatten(0, 1) * 0.5)
    with pytest.raises(ConfigError, match=r"algorithm.estimator: module 'fakes' has no function 'other'"):
        find_estimator("fakes:other")
    with pytest.raises(ConfigError, match=r"algorithm.estimator: cannot import 'nowhere:other'"):
        find_estimator("nowhere:other")


def test_order_of_slots_does_not_matter(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    order = torch.tensor([5, 0, 3, 6, 1, 4, 2])
    moved = replace(
        rollout,
        inputs=rollout.inputs.of({name: x[:, order] for name, x in rollout.inputs.tensors().items()}),
        scenarios=rollout.scenarios[:, order.numpy()],
        next_values=rollout.next_values[order],
        next_states=rollout.next_states[order],
        **{
            name: getattr(rollout, name)[:, order]
            for name in (
                *("choices", "log_probs", "values", "state", "reward", "terminated", "truncated", "valid"),
                *("final_values", "final_states", "versions"),
            )
        },
    )
    one, other = (estimate_advantages([r], grpo()) for r in (rollout, moved))
    rows = [tuple(x.tolist()) for x in one.choices]
    places = [rows.index(tuple(x.tolist())) for x in other.choices]
    for name in ("advantages", "trained", "lengths", "valid"):
        assert torch.equal(getattr(one, name)[places], getattr(other, name)), name
