"""Updates by several processes are the updates of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from fakes import scenario
from miniature import grouped, learning_config, make_policy, make_rollout
from rank_samples import CPU, Case, Result, on_threads, play, run_rank, shards
from treadle.config.algorithm import AlgorithmConfig
from treadle.errors import DivergenceError
from treadle.policies.critic import NoCritic
from treadle.policies.openvla_oft import OpenVLAOFT
from treadle.training.learner import Learner
from treadle.training.ranks import ALONE
from treadle.training.samples import estimate_advantages

# Of four groups, the first and the last give a gradient; with three ranks, one has nothing but the others.
SUCCESSES = [True, False, False, False, False, True, True, True, False, False, False]
SCENARIOS = [4, 4, 4, 7, 7, 9, 9, 2, 2, 2, 2]
GROUP_SIZES = {2: (7, 4), 3: (3, 4, 4)}
SIZES = {2: (5, 2), 3: (1, 4, 2)}


def make_cases(folder: Path) -> dict[str, Case]:
    torch.manual_seed(0)
    policy = make_policy(folder, chunk=2, action_dim=3)
    policy.add_value_head(2, hidden=(16,))
    assert policy.value_head is not None
    torch.nn.init.normal_(policy.value_head.last.weight, std=0.3)
    moved = make_policy(folder, chunk=2, action_dim=3)
    with torch.no_grad():
        moved.language_model.lm_head.weight.mul_(1.1)
    rollouts = [make_rollout(policy, 3, 7, seed=1), make_rollout(policy, 2, 7, seed=2)]
    # Ranks differ in what they have, so that a mean of ranks' means is not the mean.
    rollouts[0].reward[:, :2] *= 5
    stale = make_rollout(policy, 3, 7, seed=3)
    stale.versions[:, 0] = 1
    stale.log_probs[:, 0] -= 0.5
    groups = [grouped(policy, SUCCESSES, SCENARIOS)]
    grpo: dict[str, Any] = {"kind": "grpo", "group_size": 3, "minibatch": 5, "micro_batch": 3, "epochs": 2}
    ppo: dict[str, Any] = {"minibatch": 4, "micro_batch": 3, "epochs": 2}
    clipped = {"gradient_norm": 0.5}
    return {
        "value head": Case(
            policy,
            learning_config(algorithm=ppo | {"entropy_coefficient": 0.1}, optimizer=clipped),
            "value_head",
            rollouts,
            SIZES,
        ),
        "privileged": Case(
            policy,
            learning_config(
                algorithm=ppo
                | {"chunk_share": 0.5, "decoupled": True, "stale_weight_cap": 0.9, "target_kl": 1e-9, "minibatch": 8},
                critic={"kind": "privileged", "epochs": 2},
            ),
            "privileged",
            [stale],
            SIZES,
        ),
        "groups": Case(
            policy,
            learning_config(algorithm=grpo | {"reference": {"coefficient": 0.1, "target": 0.01}}, optimizer=clipped),
            "none",
            groups,
            GROUP_SIZES,
            iterations=(3, 4),
            reference=moved,
        ),
        "normalised groups": Case(
            policy,
            learning_config(algorithm=grpo | {"estimator": "reinforce_pp_baseline"}),
            "none",
            groups,
            GROUP_SIZES,
        ),
    }


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return make_cases(tmp_path_factory.mktemp("tokenizer"))


def assert_same_metrics(found: list[dict[str, float]], wanted: list[dict[str, float]], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name in (name for name in other if not name.startswith("time/")):
            assert one[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance * 0.1), name


def assert_same_update(ranks: list[Result], alone: Result) -> None:
    for result in ranks:
        assert len(result.gradients) == len(alone.gradients) > 1
        for step, whole in zip(result.gradients, alone.gradients, strict=True):
            size = max(float(x.abs().max()) for x in whole)
            assert size > 1e-3
            for one, other in zip(step, whole, strict=True):
                assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * size)
        for name, parameter in alone.parameters.items():
            # A step is 1e-4; where a gradient is all but 0, Adam makes a share of one from rounding.
            assert torch.allclose(result.parameters[name], parameter, rtol=0, atol=2e-6), name
        assert result.coefficient == pytest.approx(alone.coefficient)
        assert_same_metrics(result.metrics, alone.metrics, 1e-4)
        assert_same_metrics(result.metrics, ranks[0].metrics, 0.0)
        assert all(torch.equal(x, ranks[0].parameters[name]) for name, x in result.parameters.items())


@pytest.mark.integration
@pytest.mark.parametrize("count", [2, 3])
def test_processes_make_the_update_of_one(cases: dict[str, Case], tmp_path: Path, count: int):
    torch.save(cases, tmp_path / "cases.pt")
    torch.multiprocessing.spawn(run_rank, (count, tmp_path), count)
    found = [torch.load(tmp_path / f"found-{count}-{rank}.pt", weights_only=False) for rank in range(count)]
    for name, case in cases.items():
        assert_same_update([each[name] for each in found], play(case, case.rollouts))
    last = count - 1
    for rank, each in enumerate(found):
        faults = each["faults"]
        assert faults["nan"].startswith(f"DivergenceError: rank {last}: rollout.reward is nan: training stopped")
        assert faults["rollouts"].startswith(f"RankError: rank 0 has 2 rollouts and rank {last} has 4")
        assert "lm_head.weight is not the same on ranks 0 and" in faults["parameters"]
        assert faults["group"].startswith("RankError: Scenario(")
        assert "is played on ranks 0 and 1" in faults["group"]
        if rank < last:
            assert f"rank {rank} waited for rank {last}, which" in each["absence"]
            assert "within 1 s" in each["absence"]
