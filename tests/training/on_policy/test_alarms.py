"""Every silent failure is reproduced, and its line names it; sound runs raise no alarm."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import treadle
from miniature import SCENARIOS, SUCCESSES, grouped, learning_config
from table_policy import TablePolicy, table_rollout
from treadle.config.loading import load_recipe
from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.policies.critic import PrivilegedCritic
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.on_policy.alarms import CHECKS, Alarms
from treadle.training.on_policy.ppo import PPO
from update_samples import STATE, make_ppo, rewarding

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
GRPO: dict[str, Any] = {"kind": "grpo", "group_size": 3, "minibatch": 64}


def alarms(config: TrainConfig, *rows: dict[str, float], dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """What is said after the last of the rows."""
    made = Alarms(config, [torch.nn.Parameter(torch.zeros(1, dtype=dtype))])
    return [made.see(row) for row in rows][-1]


def line(config: TrainConfig, *rows: dict[str, float], **settings: Any) -> str:
    """The one sentence that is said after the last of the rows."""
    (said,) = alarms(config, *rows, **settings).values()
    return said


def metrics(ppo: PPO, rollout: Any, updates: int) -> list[dict[str, float]]:
    return [ppo.update([rollout], 3) for _ in range(updates)]


def drawing(ratios: list[float], rewards: list[float], rate: float = 1e-4, **algorithm: Any) -> tuple[PPO, Any]:
    """A PPO whose policy finds decisions `ratios` times as likely as the policy that acted; each is an episode."""
    old = torch.tensor([-1.0, -2.0, -0.5, -1.5])[: len(ratios)]
    policy = TablePolicy((old + torch.tensor(ratios).log())[:, None, None])
    rollout = table_rollout(policy, torch.tensor(rewards)[:, None, None])
    rollout.log_probs = old[:, None, None, None].clone()
    return make_ppo(policy, at_rate(rate, **algorithm), None), rollout


def at_rate(rate: float, **algorithm: Any) -> TrainConfig:
    config = rewarding(**algorithm)
    optimizer = config.optimizer.model_copy(update={"learning_rate": rate, "weight_decay": 0.0})
    return config.model_copy(update={"optimizer": optimizer})


# Each sign.


def test_other_log_probs_in_the_trainer():
    """A gap of ln 1.05 = 0.0488 nats is below 0.05, and diverges by 0.05 - ln 1.05 = 0.00121."""
    ppo, rollout = drawing([1.05] * 4, [1.0, -1.0, 2.0, -2.0])
    found = ppo.update([rollout], 3)
    assert found["update/first_kl"] == pytest.approx(0.05 - math.log(1.05), rel=1e-3)
    said = ppo.alarms(found)["log_prob_gap"]
    assert said.startswith("log-probs of rollout and trainer differ by 0.0488 nats in the mean")
    assert "diverge by 0.0012 (limit 0.001) before the first step" in said
    assert "policy.dtype=float32" in said
    # Old data diverges, and nothing is wrong.
    assert "log_prob_gap" not in ppo.alarms(found | {"update/staleness": 1.0})


def test_a_policy_that_does_not_draw():
    policy = TablePolicy(torch.full((4, 1, 1), 0.0))
    ppo = make_ppo(policy, rewarding(), None)
    found = ppo.update([table_rollout(policy, torch.tensor([[[1.0], [-1.0]], [[2.0], [-2.0]]]))], 3)
    assert found["update/log_prob_std"] == 0.0
    said = ppo.alarms(found)["constant_log_probs"]
    assert "update/log_prob_std is 0, entropy 1)" in said
    assert "raise policy.sampling.temperature, or the noise of policy.options" in said


def test_the_spread_of_log_probs_is_over_what_was_played():
    """Of -1, -3 and -5 the last was not played: 1 around -2."""
    policy = TablePolicy(torch.tensor([-1.0, -3.0, -5.0])[:, None, None])
    rollout = table_rollout(policy, torch.ones(3, 1, 1))
    rollout.valid[2] = False
    found = make_ppo(policy, rewarding(), None).update([rollout], 3)
    assert found["update/log_prob_std"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("dtype", "rate", "words"),
    [
        (torch.float32, 1e-10, "in their last place (float32); it is lost; raise optimizer.learning_rate"),
        (torch.bfloat16, 1e-6, "(bfloat16); float32 masters keep it, but the policy that acts stands still until"),
    ],
)
def test_steps_that_are_too_small_for_the_weights(dtype: torch.dtype, rate: float, words: str):
    policy = TablePolicy(torch.tensor([-1.0, -2.0, -0.5, -1.5])[:, None, None]).to(dtype)
    ppo = make_ppo(policy, at_rate(rate), None)
    rollout = table_rollout(policy, torch.tensor([[[1.0], [-1.0]], [[2.0], [-2.0]]]))
    *first, last = metrics(ppo, rollout, 3)
    assert not any("unmoved_weights" in ppo.alarms(row) for row in first), "three iterations tell"
    said = ppo.alarms(last)["unmoved_weights"]
    assert said.startswith("100.00% of the weights that have a gradient are as before the step")
    assert f"at rate {rate:.2g} it is below half a unit" in said
    assert words in said


def test_ordinary_steps_move_weights():
    policy = TablePolicy(torch.tensor([-1.0, -2.0, -0.5, -1.5])[:, None, None])
    ppo = make_ppo(policy, rewarding(), None)
    rollout = table_rollout(policy, torch.tensor([[[1.0], [-1.0]], [[2.0], [-2.0]]]))
    assert [row["update/unmoved_share"] for row in metrics(ppo, rollout, 2)] == [0.0, 0.0]


BASE = {"base/success": 0.55, "base/success_low": 0.5}


@pytest.mark.parametrize(
    ("success", "high", "alarm"),
    [(0.01, 0.06, True), (0.2, 0.26, False), (0.0, 0.9, False), (0.5, 0.6, False)],
)
def test_sampling_breaks_what_the_greedy_base_can_do(success: float, high: float, alarm: bool):
    row = BASE | {"sampled/success": success, "sampled/success_high": high}
    said = alarms(load_recipe("quickstart", []), row)
    assert said.keys() == ({"worse_than_greedy"} if alarm else set())
    if alarm:
        assert said["worse_than_greedy"] == (
            "1.0% of the sampled episodes succeed (at most 6.0%), and 55.0% of the base's evaluation (at least 50.0%): "
            "exploration breaks what the base can do; lower policy.sampling.temperature (now 0.7) or the noise of "
            "policy.options, or execute a longer chunk, simulator.horizon 40 of 80 evaluated steps"
        )


def test_many_steps_with_a_divergence_that_rises():
    """Sixteen steps, again and again on the same decisions, each of which has a weight of its own."""
    ppo, rollout = drawing([1.0] * 4, [1.0, -1.0, 2.0, -2.0], rate=0.1, epochs=16, clip_low=0.9, clip_high=9.0)
    rows = metrics(ppo, rollout, 3)
    assert rows[0]["update/steps"] == 16
    assert 0.1 < rows[0]["update/last_kl"] < rows[2]["update/last_kl"]
    said = line(rewarding(), *({name: row[name] for name in ("update/steps", "update/last_kl")} for row in rows))
    assert said.startswith("the last of 16 steps sees the policy ")
    assert "algorithm.epochs=1 (now 1), a larger algorithm.minibatch (now 8)" in said


@pytest.mark.parametrize(
    ("steps", "kls", "alarm"),
    [
        (12, (0.2, 0.3, 0.4), True),
        (12, (0.4, 0.3, 0.2), False),  # it falls
        (12, (0.02, 0.03, 0.09), False),  # it is small
        (12, (0.2, 0.3), False),  # twice is chance
        (1, (0.2, 0.3, 0.4), False),
    ],
)
def test_what_are_too_many_steps(steps: int, kls: tuple[float, ...], alarm: bool):
    rows = [{"update/steps": float(steps), "update/last_kl": kl} for kl in kls]
    assert ("too_many_steps" in alarms(learning_config(), *rows)) == alarm


@pytest.mark.parametrize(
    ("success", "why"),
    [
        (0.0, "all fail, so the task is too hard"),
        (1.0, "all succeed, so the task is too easy"),
        (0.5, "50.0% of episodes succeed, but those of one scenario do so alike"),
    ],
)
def test_groups_that_are_all_equal(base: OpenVLAOFT, success: float, why: str):
    """Eight groups of three, three times."""
    count = 8
    won = {0.0: [False] * count, 1.0: [True] * count, 0.5: [True, False] * (count // 2)}[success]
    rollout = grouped(base, [x for x in won for _ in range(3)], [i for i in range(count) for _ in range(3)])
    config = learning_config(algorithm=GRPO)
    config = config.model_copy(update={"simulator": config.simulator.model_copy(update={"slots": 24})})
    ppo = make_ppo(copy.deepcopy(base), config, None)
    rows = [row | {"rollout/success": success} for row in metrics(ppo, rollout, 3)]
    assert rows[0]["update/filtered_group_share"] == 1
    *before, said = [ppo.alarms(row) for row in rows]
    assert before == [{}, {}], "16 groups may be chance"
    assert said["equal_groups"].startswith("the last 24 groups gave no gradient (update/filtered_group_share is 1): ")
    assert why in said["equal_groups"]


def test_one_group_that_differs_is_signal(base: OpenVLAOFT):
    rollout = grouped(base, SUCCESSES, SCENARIOS)
    ppo = make_ppo(copy.deepcopy(base), learning_config(algorithm=GRPO), None)
    for row in metrics(ppo, rollout, 4):
        assert "equal_groups" not in ppo.alarms(row | {"rollout/success": 3 / 7})


def test_without_groups_no_reward_is_no_signal():
    policy = TablePolicy(torch.tensor([-1.0, -2.0])[:, None, None])
    ppo = make_ppo(policy, rewarding(), None)
    found = ppo.update([table_rollout(policy, torch.zeros(2, 1, 1))], 3)
    said = ppo.alarms(found | {"rollout/success": 0.0})["equal_groups"]
    assert said.startswith("every advantage is 0 (0.0% of episodes succeed)")


def test_a_gradient_of_noise_alone():
    """Decisions that have no weight in common have a share of 0."""
    policy = TablePolicy(torch.tensor([-1.0, -2.0, -0.5, -1.5])[:, None, None])
    ppo = make_ppo(policy, rewarding(signal_every=1), None)
    rollout = table_rollout(policy, torch.tensor([[[1.0], [-1.0]], [[2.0], [-2.0]]]))
    *before, last = metrics(ppo, rollout, 6)
    assert not any("little_signal" in ppo.alarms(row) for row in before)
    said = ppo.alarms(last)["little_signal"]
    assert "have 0.00% in common (update/signal_share, 6 measurements, standard error 0.00%)" in said
    assert "simulator.slots, now 256, or algorithm.rounds" in said


@pytest.mark.parametrize(
    ("shares", "success", "alarm"),
    [
        ([0.001, -0.002, 0.003, -0.001, 0.0, 0.002], 0.5, True),  # 0.0005, give or take 0.0008
        ([0.001, -0.002, 0.003, -0.001, 0.0], 0.5, False),  # too few
        ([0.03, -0.02, 0.03, -0.01, 0.0, 0.02], 0.5, False),  # 0.0083, give or take 0.009
        ([0.05] * 6, 0.5, False),
        ([0.001] * 6, 0.95, False),  # it has learnt its task
    ],
)
def test_what_is_little_signal(shares: list[float], success: float, alarm: bool):
    rows = [{"update/signal_share": share, "rollout/success": success} for share in shares]
    assert ("little_signal" in alarms(learning_config(), *rows)) == alarm


@pytest.mark.parametrize(
    ("success", "alarm"),
    [
        ([0.5, 0.52, 0.5, 0.5, 0.5, 0.5, 0.6, 0.62], False),  # 0.10 more, give or take 0.014
        ([0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.6, 0.62], True),  # 0.06 more, give or take 0.051
        ([0.6, 0.62, 0.5, 0.5, 0.5, 0.5, 0.5, 0.52], True),
    ],
)
def test_a_policy_that_gets_better_has_signal(success: list[float], alarm: bool):
    rows = [{"update/signal_share": 0.001, "rollout/success": share} for share in success]
    assert ("little_signal" in alarms(learning_config(), *rows)) == alarm


@pytest.mark.parametrize(
    ("ratio", "reward", "dual_clip", "alarm"),
    [(150.0, -1.0, None, True), (150.0, -1.0, 3.0, False), (150.0, 1.0, None, False), (140.0, -1.0, None, False)],
)
def test_a_ratio_without_a_bound(ratio: float, reward: float, dual_clip: float | None, alarm: bool):
    ppo, rollout = drawing([1.0, ratio], [1.0, reward], dual_clip=dual_clip)
    found = ppo.update([rollout], 3)
    assert found["update/ratio_max_negative"] == pytest.approx(ratio if reward < 0 else 0.0, rel=1e-4)
    said = ppo.alarms(found)
    assert ("unbounded_ratio" in said) == alarm
    if alarm:
        assert "has the ratio 150 (above e^5)" in said["unbounded_ratio"]
        assert said["unbounded_ratio"].endswith("set algorithm.dual_clip=3")


def test_a_reward_that_pays_for_doing_nothing():
    row = {"return/success": -2.0, "return/failure": -0.5, "return/gap_high": -1.0}
    said = line(learning_config(), row)
    assert said.startswith("episodes that succeed return -2 in the mean, and those that fail -0.5")
    assert alarms(learning_config(), row | {"return/gap_high": 0.1}) == {}


def test_every_check_has_a_test():
    text = Path(__file__).read_text()
    assert all(f'"{name}"' in text or f'["{name}"]' in text for name in CHECKS if name != "idle_pays")


# No false alarm.


@pytest.mark.parametrize(
    ("recipe", "record"),
    [
        ("quickstart", "quickstart/seed0/metrics.jsonl"),
        ("quickstart", "quickstart/seed1/metrics.jsonl"),
        ("quickstart", "quickstart/seed2/metrics.jsonl"),
        ("quickstart", "quickstart/fresh-clone/metrics.jsonl"),
        ("quickstart-grpo", "grpo/seed0/metrics.jsonl"),
        ("quickstart-grpo", "grpo/seed1/metrics.jsonl"),
        ("quickstart-grpo", "grpo/seed2/metrics.jsonl"),
        ("quickstart-openvla", "openvla/openvla-seed0/metrics.jsonl"),
        ("quickstart-openvla-grpo", "openvla/openvla-grpo-seed0/metrics.jsonl"),
        ("tabletop-flow", "flow-learning/flow-seed0/metrics.jsonl"),
        ("tabletop-flow", "flow-learning/flow-seed1/metrics.jsonl"),
        ("tabletop-flow", "flow-learning/flow-seed2/metrics.jsonl"),
        ("libero-object", "learning/libero/ppo-seed0.jsonl"),
        ("maniskill-pushcube", "learning/maniskill/ppo-seed0.jsonl"),
    ],
)
def test_published_runs_raise_no_alarm(recipe: str, record: str):
    rows = [json.loads(text) for text in (RESULTS / record).read_text().splitlines()]
    assert len(rows) > 30
    made = Alarms(load_recipe(recipe, []), [])
    assert [made.see(row) for row in rows] == [{}] * len(rows)


def reinforcement_recipes() -> list[str]:
    """Treadle's own."""
    found = sorted((Path(treadle.__file__).parent / "recipes").glob("*.toml"))
    return [path.stem for path in found if path.stem[0] != "_" and "\n[algorithm]" in path.read_text()]


@pytest.mark.parametrize("recipe", reinforcement_recipes())
def test_shipped_settings_raise_no_alarm(base: OpenVLAOFT, recipe: str):
    """Updates of a tiny policy with the settings of each recipe for algorithm, critic and optimizer."""
    shipped = load_recipe(recipe, [])
    assert isinstance(shipped.algorithm, OnPolicyConfig)
    algorithm = shipped.algorithm.model_copy(update={"minibatch": 12, "micro_batch": 8, "rounds": 1})
    if base.entries[0] != base.chunk and algorithm.reward_level == "action":
        pytest.skip("this policy has one log-prob for a chunk")
    config = learning_config().model_copy(
        update={"algorithm": algorithm, "critic": shipped.critic, "optimizer": shipped.optimizer}
    )
    policy = copy.deepcopy(base)
    critic = None if not config.has_critic else PrivilegedCritic(STATE, base.chunk, 8)
    ppo = make_ppo(policy, config, critic if config.critic.kind == "privileged" or not config.has_critic else None)
    for iteration in range(5):
        size = algorithm.group_size
        won = [True, *[False] * (size - 1)] * 2 if size > 1 else [True, False] * 6
        rollout = grouped(policy, won, [i // max(size, 2) for i in range(len(won))], seed=iteration)
        rollout.versions[:] = iteration
        # Rewards beside success, so that estimators of returns see a difference.
        rollout.reward += torch.where(rollout.valid, torch.randn_like(rollout.reward) * 0.01, 0)
        assert ppo.alarms(ppo.update([rollout], iteration)) == {}, iteration
