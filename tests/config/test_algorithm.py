"""Vetted defaults, and combinations that make no sense are refused with the reason."""

import re
from typing import Any

import pytest

from treadle.config.loading import load_recipe, read_config
from treadle.config.on_policy import GroupFilterConfig, GRPOConfig, PPOConfig
from treadle.config.schema import CriticConfig, TrainConfig
from treadle.errors import ConfigError


def test_grpo_is_a_set_of_defaults_each_of_which_may_differ():
    grpo = GRPOConfig()
    assert (grpo.estimator, grpo.group_size, grpo.partial_reset, grpo.epochs) == ("grpo", 8, False, 1)
    assert (grpo.normalize_advantages, grpo.trajectory_weights) == (False, True)
    assert grpo.filter == GroupFilterConfig(low=0.1, high=0.9)
    assert GRPOConfig(group_size=4, epochs=3).epochs == 3
    partly = GRPOConfig(filter={"refills": 2})  # type: ignore[arg-type]
    assert partly.filter == GroupFilterConfig(low=0.1, high=0.9, refills=2)
    assert not GRPOConfig(estimator="dr_grpo").trajectory_weights
    assert GRPOConfig(estimator="reinforce_pp_baseline").normalize_advantages
    to_go = GRPOConfig(estimator="rloo_to_go")
    assert (to_go.normalize_advantages, to_go.trajectory_weights, to_go.advantages_per_action) == (True, False, True)
    assert not grpo.advantages_per_action


def test_a_recipe_and_the_configuration_that_it_leaves_are_the_same(tmp_path):
    config = load_recipe("quickstart-grpo", ["algorithm.filter.refills=1", "algorithm.reference.coefficient=0.1"])
    assert config.algorithm.filter == GroupFilterConfig(refills=1)
    assert config.algorithm.normalize_advantages, "as vetted for its estimator"
    assert config.critic_warmup == 0
    assert not config.has_critic
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert read_config(TrainConfig, path) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"estimator": "gea"}, "estimator 'gea' is unknown, did you mean 'gae'?; use gae, grpo"),
        ({"loss": "clop"}, "loss 'clop' is unknown; use clip"),
        ({"ratio_level": "chunk"}, "one ratio cannot carry an advantage per action"),
        ({"ratio_level": "sequence"}, "one ratio cannot carry an advantage per action"),
        ({"reward_level": "chunk", "value_level": "action"}, "only the first of a chunk's values would be read"),
        ({"estimator": "grpo", "group_size": 8}, "it scores whole episodes"),
        ({"estimator": "reinforce_pp"}, "it scores whole episodes"),
        ({"group_size": 8}, "would end in different rollouts"),
        ({"kind": "grpo", "group_size": 1}, "an episode alone has no advantage"),
        ({"filter": {"low": 0.1}}, "there are no groups to filter"),
        ({"kind": "grpo", "filter": {"low": 0.9, "high": 0.1}}, "every group would be skipped"),
        ({"estimator": "reinforce_pp", "partial_reset": False, "normalize_advantages": False}, "use normalize_advant"),
        (
            {"kind": "grpo", "estimator": "rloo_to_go", "ratio_level": "chunk"},
            "one ratio cannot carry an advantage per",
        ),
        ({"reference": {"target": 0.1}}, "nothing to adapt"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(fields: dict[str, Any], message: str, tmp_path):
    import json

    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"algorithm": fields}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_config(TrainConfig, path)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_policy_that_learns_must_draw(kind: str):
    """Evaluation may be greedy."""
    said = rf"policy.sampling.temperature 0 with algorithm.kind '{kind}': a greedy policy tries nothing"
    with pytest.raises(ConfigError, match=said):
        load_recipe("quickstart", [f"algorithm={{kind='{kind}'}}", "policy.sampling.temperature=0"])
    assert load_recipe("quickstart", ["evaluation.sampling.temperature=0"]).evaluation.sampling.temperature == 0


@pytest.mark.parametrize("level", ["token", "action", "chunk", "sequence"])
def test_an_episodes_advantage_suits_every_ratio(level: Any):
    assert GRPOConfig(ratio_level=level).ratio_level == level


def test_values_follow_the_reward_unless_said_otherwise():
    assert PPOConfig().values_per_action
    assert not PPOConfig(reward_level="chunk", ratio_level="chunk").values_per_action
    assert not PPOConfig(value_level="chunk").values_per_action


def test_gae_needs_a_critic_and_an_estimator_of_ones_own_may_not():
    with pytest.raises(ValueError, match=r"critic.kind 'none' with algorithm.estimator 'gae'"):
        TrainConfig(critic=CriticConfig(kind="none"))
    own = TrainConfig(critic=CriticConfig(kind="none"), algorithm=PPOConfig(estimator="my.module:function"))
    assert not own.has_critic
    assert own.critic_warmup == 0
