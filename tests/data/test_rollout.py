"""Rollouts are divided among ranks by slots, and joined again."""

from dataclasses import replace
from itertools import pairwise

import hypothesis
import pytest
import torch
from hypothesis import strategies

from fake_lanes import assert_same
from fakes import scenario
from miniature import make_policy, make_rollout
from treadle.data.rollout import Rollout
from treadle.data.step import EpisodeResult


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    rollout = make_rollout(make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3), 3, 6)
    episodes = [EpisodeResult(scenario(slot), slot % 2 == 0, False, float(slot), 3, slot) for slot in (0, 2, 3, 5)]
    return replace(rollout, episodes=episodes, next_inputs=rollout.inputs)


@hypothesis.given(cuts=strategies.sets(strategies.integers(1, 5)))
def test_parts_join_to_the_whole(whole: Rollout, cuts: set[int]):
    parts = [whole.take_slots(first, stop) for first, stop in pairwise([0, *sorted(cuts), 6])]
    joined = Rollout.join(parts)
    assert_same(whole, joined)
    assert [(e.slot, e.scenario) for e in joined.episodes] == [(e.slot, e.scenario) for e in whole.episodes]
    assert joined.next_inputs is not None


def test_what_no_head_valued_has_no_values_in_its_parts_either(whole: Rollout):
    unvalued = replace(whole, values=None, final_values=None, next_values=None)
    parts = [unvalued.take_slots(0, 2), unvalued.take_slots(2, 6)]
    for each in (*parts, Rollout.join(parts)):
        assert (each.values, each.final_values, each.next_values) == (None, None, None)
    assert_same(unvalued, Rollout.join(parts))


def test_slots_are_counted_from_the_parts_first(whole: Rollout):
    part = whole.take_slots(2, 5)
    assert part.valid.shape[1] == 3
    assert [(e.slot, e.scenario.index) for e in part.episodes] == [(0, 2), (1, 3)]
    assert torch.equal(part.next_values, whole.next_values[2:5])
    assert torch.equal(part.next_states, whole.next_states[2:5])


def test_a_round_that_ended_earlier_is_filled_up_with_what_was_not_played(whole: Rollout):
    first, second = whole.take_slots(0, 2), whole.take_slots(2, 6)
    names = ("choices", "log_probs", "values", "state", "reward", "terminated", "truncated", "success", "valid")
    short = replace(
        first,
        inputs=first.inputs.take(slice(0, 2)),
        next_inputs=None,
        scenarios=first.scenarios[:2],
        **{name: getattr(first, name)[:2] for name in (*names, "final_values", "final_states", "versions")},
    )
    joined = Rollout.join([short, second])
    assert joined.valid.shape[:2] == (3, 6)
    assert not joined.valid[2, :2].any()
    assert joined.reward[2, :2].eq(0).all()
    assert list(joined.scenarios[2, :2]) == [None, None]
    assert joined.next_inputs is None
    assert torch.equal(joined.reward[:, 2:], whole.reward[:, 2:])
