"""Estimators as a recipe names them, on a timeline whose numbers can be followed."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from treadle.algorithms.advantages import estimate_gae, normalize
from treadle.algorithms.estimators import ESTIMATORS, Timeline
from treadle.config import on_policy

# Four slots, three entries. Slots 0 and 1 play scenario 5, slots 2 and 3 scenario 6; slot 1 ends after two entries.
REWARDS = torch.tensor([[1.0, 0.0, 2.0, 2.0], [0.0, 4.0, 0.0, 0.0], [3.0, 99.0, 1.0, 1.0]])
VALID = torch.tensor([[True] * 4, [True] * 4, [True, False, True, True]])
ENDED = torch.tensor([[False] * 4, [False, True, False, False], [True, False, True, True]])
SCENARIOS = torch.tensor([[5, 5, 6, 6], [5, 5, 6, 6], [5, -1, 6, 6]])


def timeline(gamma: float = 0.5) -> Timeline:
    zero = torch.zeros(3, 4)
    return Timeline(REWARDS, zero + 0.5, ENDED, zero, torch.zeros(4), VALID, SCENARIOS, gamma, 0.8)


def given_to_valid(per_slot: list[float]) -> Tensor:
    return torch.where(VALID, torch.tensor(per_slot), 0)


def test_names_are_those_of_the_configuration() -> None:
    assert set(ESTIMATORS) == set(on_policy.ESTIMATORS)


def test_scores_are_undiscounted_sums_over_what_was_played() -> None:
    assert timeline().scores().tolist() == [4, 4, 3, 3]
    assert not ESTIMATORS["grpo"](timeline()).advantages.any(), "equal scores"


@pytest.mark.parametrize(
    ("name", "first", "second"),
    # Scores 6 and 4: mean 5, sample deviation 2 ** 0.5; each has one other.
    [
        ("grpo", 1 / 2**0.5, -1 / 2**0.5),
        ("dr_grpo", 1.0, -1.0),
        ("rloo", 2.0, -2.0),
        ("reinforce_pp_baseline", 1.0, -1.0),
    ],
)
def test_an_episodes_advantage_is_given_to_all_that_it_played(name: str, first: float, second: float) -> None:
    REWARDS[0, 0] += 2
    try:
        estimate = ESTIMATORS[name](timeline())
    finally:
        REWARDS[0, 0] -= 2
    assert_close(estimate.advantages, given_to_valid([first, second, 0, 0]), atol=1e-5, rtol=0)
    assert estimate.returns is None


def test_reinforce_pp_is_the_return_from_each_entry_on() -> None:
    wanted = torch.tensor(
        [[1 + 0.25 * 3, 0.5 * 4, 2 + 0.25 * 1, 2 + 0.25 * 1], [0.5 * 3, 4, 0.5, 0.5], [3.0, 0.0, 1.0, 1.0]]
    )
    found = ESTIMATORS["reinforce_pp"](timeline())
    assert_close(found.advantages, wanted)
    assert abs(normalize(found.advantages, VALID)[VALID].mean()) < 1e-6


def test_returns_to_go_are_compared_entry_by_entry_among_those_that_still_play() -> None:
    # Returns to go of slots 0 and 1 are 1.75 and 2, then 1.5 and 4; slot 0 has no company in the last entry.
    wanted = torch.tensor([[-0.25, 0.25, 0, 0], [-2.5, 2.5, 0, 0], [0, 0, 0, 0]])
    found = ESTIMATORS["rloo_to_go"](timeline())
    assert_close(found.advantages, wanted)
    assert found.returns is None
    # What was earned before an entry is no part of its advantage.
    earlier = replace(timeline(), rewards=REWARDS + torch.tensor([[8.0, 0, 0, 0], [0] * 4, [0] * 4]))
    assert_close(
        ESTIMATORS["rloo_to_go"](earlier).advantages, wanted + torch.tensor([[8.0, -8, 0, 0], [0] * 4, [0] * 4])
    )


def test_an_entry_of_one_scenario_is_no_entry_of_another() -> None:
    """Whatever numbers scenarios have, such as 6 and 9 for 3 entries."""
    plain = ESTIMATORS["rloo_to_go"](timeline()).advantages
    for other in (3, 7, 9, 18):
        scenarios = torch.where(SCENARIOS == 5, other, SCENARIOS)
        assert_close(ESTIMATORS["rloo_to_go"](replace(timeline(), scenarios=scenarios)).advantages, plain)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(0, 2**31))
def test_advantages_to_go_of_a_group_sum_to_zero_in_every_entry(entries: int, groups: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = entries, len(groups)
    lengths = torch.randint(1, entries + 1, shape[1:], generator=generator)
    place = torch.arange(entries)[:, None]
    valid, zero = place < lengths, torch.zeros(shape, dtype=torch.float64)
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    scenarios = torch.where(valid, torch.tensor(groups), -1)
    x = Timeline(rewards, zero, place == lengths - 1, zero, zero[0], valid, scenarios, 0.9, 0.8)
    advantages = ESTIMATORS["rloo_to_go"](x).advantages
    for group in set(groups):
        slots = torch.tensor(groups) == group
        assert_close(advantages[:, slots].sum(1), zero[:, 0])
        alone = valid[:, slots].sum(1) == 1
        assert not advantages[:, slots][alone].any()
    assert not advantages[~valid].any()


def delayed(entries: int = 12, delay: int = 4) -> Timeline:
    """Two episodes that earn the same, the second later; with an entry of a third, alone in its scenario."""
    earns = torch.linspace(0.1, 1.0, entries, dtype=torch.float64)
    rewards = torch.zeros(entries + delay, 3, dtype=torch.float64)
    rewards[:entries, 0], rewards[delay:, 1], rewards[0, 2] = earns, earns, 3.0
    last = torch.tensor([entries - 1, entries + delay - 1, 0])
    place = torch.arange(len(rewards))[:, None]
    valid, zero = place <= last, torch.zeros_like(rewards)
    scenarios = torch.where(valid, torch.tensor([7, 7, 8]), -1)
    return Timeline(rewards, zero, place == last, zero, zero[0], valid, scenarios, 0.5, 0.8)


def test_an_episode_that_is_behind_is_compared_with_when_others_were_there() -> None:
    x = delayed()
    alike, to_go = (ESTIMATORS[name](x).advantages[:, :2] for name in ("rloo_alike", "rloo_to_go"))
    # While both play, and the second is behind.
    assert alike[4:12].square().mean() < to_go[4:12].square().mean() / 2


def test_moments_alike_by_hand() -> None:
    """Returns of 2.5 and 3, and of 2 and 4. Moments, as time and what was earned before: (0, 0) and (1, 1), and (0, 0)
    and (1, 0). Their variances are 1/4 and 3/16, and squared widths are those times 4^(-1/3). An entry of time
    weighs `later`, and a reward of 1 that the other does not have weighs `richer`.
    """
    rewards = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    zero, every = torch.zeros_like(rewards), torch.ones(2, 2, dtype=torch.bool)
    ended = torch.tensor([[False] * 2, [True] * 2])
    x = Timeline(rewards, zero, ended, zero, zero[0], every, torch.full((2, 2), 7), 0.5, 0.8)
    later, richer = (math.exp(-1 / (variance * 4 ** (-1 / 3)) / 2) for variance in (1 / 4, 3 / 16))
    wanted = [
        [2.5 - (2 + later * 4) / (1 + later), 2 - (2.5 + later * richer * 3) / (1 + later * richer)],
        [3 - (later * 2 + 4) / (later + 1), 4 - (later * 2.5 + richer * 3) / (later + richer)],
    ]
    assert_close(ESTIMATORS["rloo_alike"](x).advantages, torch.tensor(wanted, dtype=torch.float64))


def test_moments_alike_ignore_what_was_not_played_and_who_is_alone() -> None:
    x = delayed()
    advantages = ESTIMATORS["rloo_alike"](x).advantages
    assert not advantages[~x.valid].any()
    assert not advantages[:, 2].any()
    other = replace(x, rewards=torch.where(x.valid, x.rewards, 99.0))
    assert_close(ESTIMATORS["rloo_alike"](other).advantages, advantages)


def test_gae_is_gae() -> None:
    x = timeline()
    advantages, returns = estimate_gae(
        x.rewards, x.values, x.ended, x.bootstrap_values, x.last_values, x.valid, gamma=0.5, gae_lambda=0.8
    )
    found = ESTIMATORS["gae"](x)
    assert torch.equal(found.advantages, advantages)
    assert found.returns is not None
    assert torch.equal(found.returns, returns)


@pytest.mark.parametrize("name", ["gae", "grpo", "dr_grpo", "rloo", "rloo_to_go", "rloo_alike", "reinforce_pp"])
def test_permuting_slots_permutes_advantages(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x = timeline()
    rewards = torch.randn(3, 4, generator=generator)
    order = torch.tensor([2, 0, 3, 1])

    def estimate(columns: Tensor) -> Tensor:
        parts = (rewards, x.values, x.ended, x.bootstrap_values)
        rows = [part[:, columns] for part in parts]
        last, valid, scenarios = x.last_values[columns], x.valid[:, columns], x.scenarios[:, columns]
        return ESTIMATORS[name](Timeline(*rows, last, valid, scenarios, 0.9, 0.8)).advantages

    assert_close(estimate(order), estimate(torch.arange(4))[:, order])
