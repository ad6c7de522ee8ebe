"""What the base class gives a policy of one's own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gaussian_policy import GaussianPolicy
from treadle.cli import app
from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies import load_policy
from treadle.policies.protocol import Policy
from treadle.policies.sampling import Sampling

KIND = "gaussian_policy:GaussianPolicy"
KEYS = noise_key(7, np.arange(4))


@pytest.fixture
def policy() -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(proprioception_dim=5, action_dim=3, value_outputs=1)


def prepare(policy: Policy, count: int = 4):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, 1, 8, 8, 3), dtype=np.uint8)
    return policy.prepare(frames, ["lift"] * count, rng.normal(size=(count, 5)).astype(np.float32))


def test_a_policy_of_ones_own_acts_and_is_evaluated(policy: GaussianPolicy) -> None:
    inputs, rows = prepare(policy), torch.tensor([2, 0])
    decision = policy.act(inputs, Sampling(), KEYS)
    assert decision.actions.shape == (4, 2, 3)
    assert decision.log_probs.shape == (4, *policy.entries)
    evaluation = policy.evaluate(inputs.take(rows), decision.choice[rows], Sampling())
    torch.testing.assert_close(evaluation.log_probs.detach(), decision.log_probs[rows])
    # The entropy of a normal density of deviation 1/e.
    assert evaluation.entropy[0, 0, 0].item() == pytest.approx(0.5 * math.log(2 * math.pi * math.e) - 1)
    again = policy.act(inputs.take(rows), Sampling(), KEYS[rows.numpy()])
    torch.testing.assert_close(again.actions, decision.actions[rows])
    assert policy.freeze().keys() == {"policy", "value"}
    assert {id(p) for p in policy.freeze()["value"]} == {id(p) for p in policy.value_head.parameters()}


def test_its_directory_names_its_class(policy: GaussianPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    assert json.loads((tmp_path / "policy" / "config.json").read_text())["treadle"]["policy"] == policy.kind == KIND
    for found in (
        load_policy(tmp_path / "policy", device="cpu"),
        load_policy(tmp_path / "policy", device="cpu", kind=KIND),
    ):
        assert type(found) is GaussianPolicy
        inputs = prepare(policy)
        assert torch.equal(found.act(inputs, Sampling(), KEYS).actions, policy.act(inputs, Sampling(), KEYS).actions)


def test_it_can_be_inspected(policy: GaussianPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy")
    result = CliRunner().invoke(
        app, ["policy", "inspect", str(tmp_path / "policy"), "--json", str(tmp_path / "x.json")]
    )
    assert result.exit_code == 0, result.output
    assert KIND in result.output
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["parameters"] == {
        name: sum(p.numel() for n, p in policy.named_parameters() if n.partition(".")[0] == name)
        for name in ("log_std", "body", "mean", "value_head")
    }
    count = sum(report["parameters"].values())
    # float32: weight, gradient and two moments.
    assert report["memory_bytes"] == {"acting": 4 * count, "full": 16 * count, "lora": None, "further_sample": None}


def test_what_it_cannot_do_is_refused_by_name(policy: GaussianPolicy) -> None:
    inputs = prepare(policy)
    assert policy.encode(inputs) is inputs
    policy.recompute(False)
    policy.compile_blocks(False)
    for refused, message in (
        (lambda: policy.add_lora(4), "policy.lora.rank: policy '.*' takes no adapters; use 0"),
        (policy.recompute, "policy.gradient_checkpointing: .* use false"),
        (policy.compile_blocks, "policy.compile: .* use false"),
        (lambda: policy.targets(torch.zeros(1, 2, 3)), "policy.kind: .* cannot imitate"),
        (lambda: policy.supervised_loss(inputs, torch.zeros(1, 2, 3)), "policy.kind: .* cannot imitate"),
    ):
        with pytest.raises(ConfigError, match=message):
            refused()
