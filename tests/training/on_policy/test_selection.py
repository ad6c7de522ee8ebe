"""Which groups of episodes are worth a gradient."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fakes import scenario
from miniature import SCENARIOS, SUCCESSES, grouped, make_policy, make_rollout
from treadle.config.on_policy import GRPOConfig, PPOConfig
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.on_policy.batch import estimate_advantages
from treadle.training.on_policy.selection import count_groups, number_scenarios, select_slots


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    return make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)


def grpo(**fields: Any) -> GRPOConfig:
    return GRPOConfig(group_size=3, **fields)


def test_groups_without_a_gradient_are_skipped(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    for config in (grpo(), grpo(filter={"low": 0.0, "high": 1.0})):
        fresh = replace(rollout, selected=None)
        assert select_slots(fresh, config).tolist() == [True] * 3 + [False] * 4
        assert count_groups(fresh, config) == (1, 3)
    assert count_groups(replace(rollout, selected=None), grpo(filter={"low": 0.4})) == (0, 3)
    # Without the comparison within groups, the success rate alone decides.
    gae = PPOConfig(partial_reset=False, group_size=3, filter={"high": 0.5})  # type: ignore[arg-type]
    assert select_slots(rollout, gae).tolist() == [True] * 5 + [False] * 2


def test_a_group_is_a_whole_scenario_not_its_index(policy: OpenVLAOFT):
    """Scenario 4 of two suites: one success in each of two groups of two, not two in one group of four."""
    rollout = grouped(policy, [True, False, False, False], [4, 4, 4, 4])
    other = scenario(4, suite="odd/a")
    rollout.scenarios[:, 2:] = other
    rollout.episodes[-1] = replace(rollout.episodes[-1], scenario=other)
    rollout.episodes[-2] = replace(rollout.episodes[-2], scenario=other)
    config = GRPOConfig(group_size=2)
    assert number_scenarios(rollout.scenarios).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [-1, 0, 1, 1]]
    assert select_slots(rollout, config).tolist() == [True, True, False, False]
    assert count_groups(rollout, config) == (1, 2)
    samples = estimate_advantages([rollout], config)
    assert samples.take(samples.trained).advantages[:2].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-5)
    assert not samples.take(~samples.trained).advantages.any()


def test_the_choice_of_groups_is_made_once_and_kept_with_the_rollout(policy: OpenVLAOFT):
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    assert rollout.selected is None
    first = select_slots(rollout, grpo())
    assert first is rollout.selected
    rollout.reward[:] = 0
    rollout.episodes = []
    assert select_slots(rollout, grpo()) is first
    assert count_groups(rollout, grpo()) == (1, 3)
    samples = estimate_advantages([rollout], grpo())
    assert torch.equal(samples.trained, first.expand(3, 7)[rollout.valid.any(-1)])


def test_without_groups_every_slot_counts(policy: OpenVLAOFT):
    assert select_slots(make_rollout(policy, 2, 4), PPOConfig()).tolist() == [True] * 4
