"""Updates by several processes are the updates of one."""

from pathlib import Path
from typing import Any, Literal

import hypothesis
import pytest
import torch
import torch.multiprocessing
from hypothesis import strategies

from miniature import grouped, learning_config, make_policy, make_rollout
from rank_samples import Case, assert_same_update, on_threads, play, run_rank, shards
from treadle.algorithms.advantages import Moments, normalize
from treadle.config.on_policy import PPOConfig
from treadle.training.on_policy.batch import Samples, estimate_advantages, join_moments, measure_shares
from treadle.training.ranks import ALONE, Ranks

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


def test_normalisation_by_hand():
    """Rewards 1, 2 | 6, 9: mean 4.5, deviations -3.5 -2.5 1.5 4.5, whose squares sum to 41. A shard alone would have
    means of 1.5 and 7.5.
    """
    rewards = [torch.tensor([1.0, 2.0]), torch.tensor([6.0, 9.0, 50.0])]
    valid = [torch.ones(2, dtype=torch.bool), torch.tensor([True, True, False])]

    def work(ranks: Ranks) -> list[float]:
        x, counted = rewards[ranks.rank], valid[ranks.rank]
        (moments,) = join_moments([Moments.of(x, counted)], ranks)
        return normalize(x, counted, eps=0.0, moments=moments).tolist()

    std = (41 / 4) ** 0.5
    first, second = on_threads(2, work)
    assert first == pytest.approx([-3.5 / std, -2.5 / std])
    assert second == pytest.approx([1.5 / std, 4.5 / std, 0])


def test_samples_have_their_place_in_the_order_of_all():
    """Orders 3 8 | 1 5 | none: the samples are 1 3 5 8, of which rank 0 holds the second and fourth."""
    orders = [torch.tensor([3, 8]), torch.tensor([1, 5]), torch.tensor([], dtype=torch.long)]
    found = on_threads(3, lambda ranks: ranks.place(orders[ranks.rank]).tolist())
    assert found == [[-1, 0, -1, 1], [0, -1, 1, -1], [-1, -1, -1, -1]]
    assert ALONE.place(orders[0]).tolist() == [0, 1]


def test_sums_and_texts():
    numbers = [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    assert on_threads(2, lambda ranks: ranks.sum(numbers[ranks.rank]).tolist()) == [[11, 22]] * 2
    assert on_threads(2, lambda ranks: ranks.gather_text("é" * ranks.rank)) == [["", "é"]] * 2
    assert on_threads(2, lambda ranks: ranks.gather_text("")) == [["", ""]] * 2
    assert (ALONE.sum(numbers[0]).tolist(), ALONE.gather_text("a")) == ([1, 2], ["a"])


@hypothesis.given(
    sizes=strategies.lists(strategies.integers(1, 4), min_size=1, max_size=3).map(lambda parts: (*parts, 2)),
    level=strategies.sampled_from(["action", "chunk"]),
)
@hypothesis.settings(max_examples=15)
def test_samples_do_not_depend_on_the_number_of_ranks(
    cases: dict[str, Case], sizes: tuple[int, ...], level: Literal["action", "chunk"]
):
    """Each sample has the advantage, the place and the weight that it has on one rank that holds all."""
    policy, algorithm = cases["value head"].policy, PPOConfig(reward_level=level)
    rollouts = [make_rollout(policy, 2, sum(sizes), seed=seed) for seed in (1, 2)]
    whole = estimate_advantages(rollouts, algorithm)
    parts = shards(rollouts, sizes)

    def work(ranks: Ranks) -> tuple[Samples, torch.Tensor, torch.Tensor]:
        samples = estimate_advantages(parts[ranks.rank], algorithm, ranks=ranks)
        return samples, samples.weights(ranks), ranks.place(samples.order)

    found = on_threads(len(sizes), work)
    held = torch.zeros(len(whole), dtype=torch.long)
    for samples, weights, place in found:
        mine = place >= 0
        held += mine
        rows = place[mine]
        assert torch.equal(samples.choices[rows], whole.choices[mine])
        assert torch.equal(samples.order[rows], whole.order[mine])
        assert torch.allclose(samples.advantages[rows], whole.advantages[mine], atol=1e-5)
        assert torch.allclose(weights[rows], whole.weights()[mine], atol=1e-5)
    assert held.tolist() == [1] * len(whole)


def test_a_rank_without_a_sample_takes_part(cases: dict[str, Case]):
    """All of its groups are skipped, and metrics are those of one rank."""
    case = cases["groups"]
    algorithm = case.config.algorithm
    parts = shards(case.rollouts, GROUP_SIZES[3])
    dimensions = torch.ones(3, dtype=torch.bool)

    def work(ranks: Ranks) -> tuple[int, dict[str, float]]:
        samples = estimate_advantages(parts[ranks.rank], algorithm, ranks=ranks)
        return int(samples.trained.sum()), measure_shares(parts[ranks.rank], samples, algorithm, dimensions, ranks)

    found = on_threads(3, work)
    alone = estimate_advantages(case.rollouts, algorithm)
    wanted = measure_shares(case.rollouts, alone, algorithm, dimensions)
    assert [count for count, _ in found] == [8, 0, int(alone.trained.sum()) - 8]
    assert [metrics for _, metrics in found] == [wanted] * 3
    assert wanted["update/filtered_group_share"] == 0.5


@pytest.mark.integration
def test_processes_make_the_update_of_one(cases: dict[str, Case], tmp_path: Path):
    """Three processes, and two of them; then, what one of three does wrong is told by all."""
    torch.save(cases, tmp_path / "cases.pt")
    torch.multiprocessing.spawn(run_rank, (3, tmp_path), 3)
    found = [torch.load(tmp_path / f"found-{rank}.pt", weights_only=False) for rank in range(3)]
    for name, case in cases.items():
        alone = play(case, case.rollouts)
        assert_same_update([each["all"][name] for each in found], alone)
        assert_same_update([each["two"][name] for each in found[:2]], alone)
    for rank, each in enumerate(found):
        faults = each["faults"]
        assert faults["loss"].startswith("DivergenceError: rank 2: policy loss is nan")
        assert faults["gradient"].startswith("DivergenceError: gradient of the policy, language_model.")
        assert faults["nan"].startswith("DivergenceError: rank 2: rollout.reward is nan: training stopped")
        assert faults["rollouts"].startswith("RankError: rank 0 has 2 rollouts and rank 2 has 4")
        assert faults["parameters"].startswith(
            "RankError: language_model.lm_head.weight is not the same on ranks 0 and 2"
        )
        assert faults["group"].startswith("RankError: Scenario(")
        assert "is played on ranks 0 and 1" in faults["group"]
        if rank < 2:
            assert f"rank {rank} waited for rank 2, which" in each["absence"]
            assert "within 2 s" in each["absence"]
