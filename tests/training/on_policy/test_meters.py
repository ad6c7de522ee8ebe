"""What is measured at the first step of an update, against numbers that are written out."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.gradient import signal_share
from miniature import SCENARIOS, SUCCESSES, grouped, learning_config, make_rollout
from rank_samples import on_threads, shards
from table_policy import TablePolicy, table_rollout
from treadle.config.on_policy import PPOConfig
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.training.on_policy.batch import estimate_advantages
from treadle.training.on_policy.meters import ENTRIES, SignalMeter, StepMeter
from treadle.training.optimizer import MasterAdamW
from treadle.training.ranks import ALONE, Ranks
from update_samples import gradients, make_ppo, rewarding, weights


def measured(first: list[float], both: list[float], counts: tuple[int, int], ranks: Ranks = ALONE) -> float | None:
    """The share of signal of two halves, after which the gradient is `first` and `both`."""
    parameter = nn.Parameter(torch.zeros(len(first)))
    meter = SignalMeter([parameter], 1, ranks)
    for half, (gradient, count) in enumerate(zip((first, both), counts, strict=True)):
        parameter.grad = torch.tensor(gradient)
        meter.note(half, count)
    return meter.share()


@pytest.mark.parametrize(
    ("first", "second", "counts", "share"),
    [
        ((3, 4), (4, -3), (5, 5), 0.0),  # nothing in common
        ((3, 4), (3, 4), (5, 5), 1.0),
        ((3, 4), (-3, -4), (5, 5), -1.0),
        ((3, 4), (6, 8), (5, 10), 1.0),  # twice the decisions, and the same mean
        ((1, 0), (2, 2), (1, 2), 2 / 3),  # means (1, 0) and (1, 1): 2 * 1 / (1 + 2)
        ((3, 4), (0, 0), (5, 0), None),  # one half is empty
        ((0, 0), (0, 0), (5, 5), None),
    ],
)
def test_the_share_of_signal_of_two_halves(first: Any, second: Any, counts: tuple[int, int], share: float | None):
    both = [float(x + y) for x, y in zip(first, second, strict=True)]
    assert measured([float(x) for x in first], both, counts) == (None if share is None else pytest.approx(share))


def test_ranks_measure_the_sum_of_their_gradients():
    """Two ranks, whose halves are (1, 0), (2, 2) together, of 1 and 2 decisions."""
    parts = [([1.0, 0.0], [2.0, 1.0], (1, 1)), ([0.0, 0.0], [1.0, 1.0], (0, 1))]
    found = on_threads(2, lambda ranks: measured(*parts[ranks.rank], ranks))
    assert found == [pytest.approx(2 / 3)] * 2


def test_an_episode_is_in_one_half_and_a_group_stays_whole(base: OpenVLAOFT):
    rollouts = [grouped(base, SUCCESSES, SCENARIOS, seed) for seed in range(2)]
    samples = estimate_advantages(rollouts, PPOConfig())
    rows = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    slots = samples.slots()
    alone, grouping = (SignalMeter(list(base.parameters()), size).halves(samples, rows) for size in (1, 3))
    for even, odd in (alone, grouping):
        assert sorted(torch.cat([even, odd]).tolist()) == list(range(len(samples)))
    assert [set(slots[half].tolist()) for half in alone] == [{0, 2, 4, 6}, {1, 3, 5}]
    # Slots 0 to 2, 3 to 5 and 6 are groups.
    assert [set(slots[half].tolist()) for half in grouping] == [{0, 1, 2, 6}, {3, 4, 5}]


def test_the_metric_is_the_share_that_the_benchmark_defines(base: OpenVLAOFT):
    """Of the mean gradients of the decisions of even and of odd slots, each from an update of its own."""
    config = rewarding(minibatch=64, signal_every=1)
    rollout = make_rollout(base, 3, 4)
    metrics = make_ppo(copy.deepcopy(base), config, None).update([rollout], 3)
    halves = []
    for others in ([1, 3], [0, 2]):
        half = copy.deepcopy(rollout)
        half.valid[:, others] = False
        (step,) = gradients(make_ppo(copy.deepcopy(base), config, None), half)
        # A step is divided by its actions, the share compares means over decisions.
        scale = half.valid.sum() / half.valid.any(-1).sum()
        halves.append(torch.cat([x.flatten() for x in step]) * scale)
    assert metrics["update/signal_share"] == pytest.approx(signal_share(torch.stack(halves))[0], rel=1e-3)


@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_iterations_that_measure(base: OpenVLAOFT, every: int):
    rollout = make_rollout(base, 2, 4)
    ppo = make_ppo(copy.deepcopy(base), rewarding(signal_every=every), None)
    rollout.versions[:] = 0
    found = ["update/signal_share" in ppo.update([rollout], iteration) for iteration in range(4)]
    assert found == [bool(every) and iteration % every == 0 for iteration in range(4)]


def test_measuring_leaves_the_update_as_it_is(base: OpenVLAOFT):
    rollout = make_rollout(base, 3, 4)
    found = []
    for every in (0, 1):
        policy = copy.deepcopy(base)
        make_ppo(policy, rewarding(signal_every=every), None).update([rollout], 3)
        found.append(weights(policy))
    assert all(torch.allclose(found[0][name], x, atol=1e-6) for name, x in found[1].items())


def test_while_the_critic_learns_alone_nothing_is_measured(policy: OpenVLAOFT):
    config = learning_config(critic={"warmup_iterations": 1})
    metrics = make_ppo(policy, config).update([make_rollout(policy, version=0)], 0)
    assert not {"update/signal_share", "update/unmoved_share"} & metrics.keys()


def test_shares_are_the_same_on_ranks(base: OpenVLAOFT):
    """Each of two ranks has two slots; the halves are slots 0 and 2, and 1 and 3."""
    rollout, config = make_rollout(base, 3, 4, version=2), rewarding(minibatch=64)
    alone = make_ppo(copy.deepcopy(base), config, None).update([rollout], 2)
    parts = shards([rollout], (2, 2))

    def share(ranks: Ranks) -> list[list[int]]:
        samples = estimate_advantages(parts[ranks.rank], PPOConfig(), ranks)
        return [sorted(set(samples.slots()[half].tolist())) for half in halves(samples, ranks)]

    def halves(samples: Any, ranks: Ranks) -> Any:
        return SignalMeter(list(base.parameters()), 1, ranks).halves(samples, torch.arange(len(samples)))

    assert on_threads(2, share) == [[[0], [1]], [[2], [3]]]
    assert "update/signal_share" in alone


def test_the_share_of_weights_that_a_step_leaves():
    """Of three weights two have a gradient, and one of them moves by less than half of 2^-23."""
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, 0.0, 1.0])

    def step() -> None:
        weight.data += torch.tensor([5e-8, 0.5, 1e-3])

    assert StepMeter([weight]).watch(step) == 0.5
    assert weight.tolist() == pytest.approx([1.0, 1.5, 1.001])
    weight.grad = None
    assert StepMeter([weight]).watch(step) is None


@pytest.mark.parametrize(("rate", "share"), [(1e-4, 1.0), (1e-2, 0.0)])
def test_a_step_below_half_a_unit_of_bfloat16_shows_in_the_share(rate: float, share: float):
    """Between 0.5 and 1 bfloat16 numbers are 2^-8 apart, and the first step of AdamW is as large as its rate."""
    weight = nn.Parameter(torch.full((4,), 1.0, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=rate, weight_decay=0.0)
    weight.grad = torch.ones(4, dtype=torch.bfloat16)
    assert StepMeter([weight]).watch(optimizer.step) == share


def test_of_many_parameters_some_entries_are_read():
    parameters = [nn.Parameter(torch.zeros(1024, 1024)), nn.Parameter(torch.zeros(3))]
    meter = SignalMeter(parameters, 1)
    for half in (0, 1):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, half + 1.0)
        meter.note(half, 1)
    assert 0.5 * ENTRIES < len(meter._sums[0][0]) <= ENTRIES + 2
    assert meter.share() == pytest.approx(1.0)
    assert meter._stride % 2, "an even stride would read some columns alone"


def test_rows_that_have_no_weight_in_common_have_no_signal():
    """Every decision of the table has a weight of its own."""
    policy = TablePolicy(torch.tensor([-1.0, -2.0, -0.5, -1.5])[:, None, None])
    ppo = make_ppo(policy, rewarding(signal_every=1), None)
    metrics = ppo.update([table_rollout(policy, torch.tensor([[[1.0], [-1.0]], [[2.0], [-2.0]]]))], 3)
    assert metrics["update/signal_share"] == 0.0
