"""From rollouts to samples: advantages of groups, what is skipped, and what is said of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fakes import scenario
from miniature import SCENARIOS, SUCCESSES, grouped, make_policy, make_rollout
from treadle.algorithms.estimators import Estimate, Timeline
from treadle.config.algorithm import AlgorithmConfig
from treadle.errors import ConfigError
from treadle.policies.openvla_oft import OpenVLAOFT
from treadle.training.samples import (
    count_groups,
    estimate_advantages,
    find_estimator,
    measure_shares,
    number_scenarios,
    select_slots,
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    return make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)


def grpo(**fields: Any) -> AlgorithmConfig:
    return AlgorithmConfig(kind="grpo", group_size=3, **fields)


def test_groups_without_a_gradient_are_skipped(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    for config in (grpo(), grpo(filter={"low": 0.0, "high": 1.0})):
        assert select_slots(rollout, config).tolist() == [True] * 3 + [False] * 4
        assert count_groups(rollout, config) == (1, 3)
    assert count_groups(rollout, grpo(filter={"low": 0.4})) == (0, 3)
    # Without the comparison within groups, the success rate alone decides.
    gae = AlgorithmConfig(partial_reset=False, group_size=3, filter={"high": 0.5})  # type: ignore[arg-type]
    assert select_slots(rollout, gae).tolist() == [True] * 5 + [False] * 2


def test_a_group_is_a_whole_scenario_not_its_index(policy: OpenVLAOFT):
    """Scenario 4 of two suites: one success in each of two groups of two, not two in one group of four."""
    rollout = grouped(policy, [True, False, False, False], [4, 4, 4, 4])
    other = scenario(4, suite="odd/a")
    rollout.scenarios[:, 2:] = other
    rollout.episodes[-1] = replace(rollout.episodes[-1], scenario=other)
    rollout.episodes[-2] = replace(rollout.episodes[-2], scenario=other)
    config = AlgorithmConfig(kind="grpo", group_size=2)
    assert number_scenarios(rollout.scenarios).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [-1, 0, 1, 1]]
    assert select_slots(rollout, config).tolist() == [True, True, False, False]
    assert count_groups(rollout, config) == (1, 2)
    samples = estimate_advantages([rollout], config)
    assert samples.take(samples.trained).advantages[:2].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-5)
    assert not samples.take(~samples.trained).advantages.any()


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
    assert torch.equal(trained.tokens[3], rollout.tokens[1, 0])
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


def test_rollouts_of_one_update_are_normalised_together(policy: OpenVLAOFT):
    rollouts = [make_rollout(policy, 3, 4, seed=seed) for seed in (1, 2)]
    rollouts[1].reward *= 5
    config = AlgorithmConfig()
    raw = [estimate_advantages([r], config.model_copy(update={"normalize_advantages": False})) for r in rollouts]
    entries = torch.cat([part.advantages[part.valid] for part in raw])
    both = estimate_advantages(rollouts, config)
    wanted = (entries - entries.mean()) / entries.std(correction=0)
    assert torch.allclose(both.advantages[both.valid], wanted, atol=1e-4)
    apart = estimate_advantages(rollouts[:1], config)
    assert not torch.allclose(both.advantages[:12], apart.advantages, atol=0.1)


def test_skipped_groups_do_not_shift_the_normalisation(policy: OpenVLAOFT):
    config = grpo(estimator="reinforce_pp_baseline")
    whole = estimate_advantages([grouped(policy, SUCCESSES, SCENARIOS)], config)
    alone = estimate_advantages([grouped(policy, SUCCESSES[:3], SCENARIOS[:3])], config)
    assert torch.allclose(whole.take(whole.trained).advantages, alone.advantages)
    assert abs(float(alone.advantages.mean())) < 1e-5
    assert float(alone.advantages.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_one_value_for_a_chunk_of_actions_that_are_rewarded_apart(policy: OpenVLAOFT):
    rollout = make_rollout(policy, 3, 4)
    config = AlgorithmConfig(value_level="chunk", normalize_advantages=False)
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
    config = AlgorithmConfig(estimator="fakes:rewards_alone", normalize_advantages=False, gamma=0.5)
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
        inputs=[inputs.take(order) for inputs in rollout.inputs],
        scenarios=rollout.scenarios[:, order.numpy()],
        next_values=rollout.next_values[order],
        **{
            name: getattr(rollout, name)[:, order]
            for name in (
                *("tokens", "log_probs", "values", "state", "reward", "terminated", "truncated", "valid"),
                *("final_values", "versions"),
            )
        },
    )
    one, other = (estimate_advantages([r], grpo()) for r in (rollout, moved))
    rows = [tuple(x.tolist()) for x in one.tokens]
    places = [rows.index(tuple(x.tolist())) for x in other.tokens]
    for name in ("advantages", "trained", "lengths", "valid"):
        assert torch.equal(getattr(one, name)[places], getattr(other, name)), name
