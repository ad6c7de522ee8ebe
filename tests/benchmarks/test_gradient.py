"""Signal in a gradient: the estimate, against arithmetic, and the command on a real simulator."""

import copy
import json
from pathlib import Path

import pytest
import torch

from benchmarks import gradient
from miniature import SCENARIOS, SUCCESSES, grouped, learning_config, make_policy
from treadle.errors import ConfigError
from treadle.training.algorithm import Training
from treadle.training.on_policy.ppo import PPO


def test_the_share_of_signal_is_the_mean_product_over_the_mean_square():
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 2.0]])
    # Products 0, 3 and -1; squares 2, 2 and 5.
    share, error = gradient.signal_share(rows)
    assert share == pytest.approx((2 / 3) / 3)
    # Left out in turn: -1 / 3.5, 3 / 3.5, 0 / 2.
    shares = torch.tensor([-1 / 3.5, 3 / 3.5, 0.0])
    assert error == pytest.approx(float((2 / 3 * (shares - shares.mean()).square().sum()).sqrt()), rel=1e-5)


def test_equal_gradients_are_all_signal_and_noise_is_none():
    assert gradient.signal_share(torch.ones(4, 7)) == pytest.approx((1.0, 0.0))
    assert gradient.signal_share(torch.zeros(3, 2)) == (0.0, 0.0)
    noise = torch.randn(40, 4000, generator=torch.Generator().manual_seed(0))
    share, error = gradient.signal_share(noise + 0.5)
    assert share == pytest.approx(0.25 / 1.25, abs=3 * error)
    assert 0 < error < 0.01
    assert abs(gradient.signal_share(noise)[0]) < 0.01


def test_the_cosine_is_with_what_the_recipe_expects():
    rows, reference = torch.tensor([[1.0, 0.0], [3.0, 0.0]]).repeat(2, 1), torch.tensor([[4.0, 3.0]]).repeat(4, 1)
    # The reference is of length 5 without noise; products are 4 and 12, in the mean 8; squares in the mean 5.
    found, _ = gradient.cosine(rows, reference)
    assert found == pytest.approx(8 / 5 / 5**0.5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 4000, generator=generator)
    towards, across = torch.zeros(4000), torch.zeros(4000)
    towards[0], across[1] = 30.0, 30.0
    # Half of what is in common points elsewhere: 30 of a length of sqrt(30^2 + 30^2 + 4000).
    found, error = gradient.cosine(noise + towards + across, torch.randn(60, 4000, generator=generator) + towards)
    assert found == pytest.approx(30 / (2 * 30**2 + 4000) ** 0.5, abs=3 * error + 0.01)
    share, _ = gradient.signal_share(noise + towards + across)
    assert share == pytest.approx(1800 / 5800, abs=0.02), "as if all of it were signal"
    assert gradient.cosine(noise + towards, noise + towards)[0] == pytest.approx((900 / 4900) ** 0.5, abs=0.02)


def test_an_algorithm_tells_its_gradient_and_changes_nothing(tmp_path: Path):
    policy = make_policy(tmp_path, chunk=2, action_dim=3)
    settings = learning_config(algorithm={"kind": "grpo", "group_size": 3, "minibatch": 64})
    rollout = grouped(policy, SUCCESSES, SCENARIOS)
    ppo = PPO(Training(policy, None, settings, torch.device("cpu"), lambda: policy))
    before = copy.deepcopy(policy.state_dict())
    found = gradient.gradient(ppo, [rollout], iteration=3)
    assert torch.equal(found, gradient.gradient(ppo, [rollout], iteration=3))
    assert all(torch.equal(before[name], x) for name, x in policy.state_dict().items())
    # One minibatch holds everything, so it is what the update clips and applies.
    metrics = ppo.update([rollout], iteration=3)
    assert metrics["update/gradient_norm"] == pytest.approx(float(found.norm()), rel=1e-4)
    assert not gradient.gradient(ppo, [grouped(policy, [False] * 4, [1, 1, 2, 2])], iteration=3).any()


def test_a_recipe_and_its_variants_are_measured_on_the_same_rollouts(tmp_path: Path):
    checkpoint = tmp_path / "tiny"
    make_policy(tmp_path).save(checkpoint)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        decisions = 2
        torch_threads = 1
        device = "cpu"
        policy.checkpoint = "{checkpoint}"
        simulator = {{slots = 4, horizon = 8, threads = 1, options = {{image_size = 32}}}}
        algorithm = {{kind = "grpo", group_size = 2, filter = {{low = 0.0, high = 1.0}}}}
        critic = {{kind = "privileged", width = 8, epochs = 1}}
        """
    )
    variants = ["algorithm.trajectory_weights=true", "algorithm.estimator=gae algorithm.gae_lambda=0.5"]
    found = gradient.run(str(recipe), tmp_path / "gradient.json", [], variants, batches=3)
    written = json.loads((tmp_path / "gradient.json").read_text())["measurements"]
    assert [row["settings"] for row in written] == ["as the recipe", *variants]
    one, same, other = found
    assert (one.share, one.norm) == (same.share, same.norm), "trajectory weights are GRPO's default"
    assert one.cosine is None
    assert one.share < 0, "noise hides the direction"
    assert one.norm > 0
    assert other.share != one.share
    with pytest.raises(ConfigError, match=r"--against 'simulator.slots=2': simulator is .* only what an update makes"):
        gradient.run(str(recipe), None, [], ["simulator.slots=2"], batches=3)
    with pytest.raises(ConfigError, match="allowed is 3 or more"):
        gradient.run(str(recipe), None, [], batches=2)
