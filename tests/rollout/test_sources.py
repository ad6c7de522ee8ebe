"""Which scenarios are played: streams by counters, lists by lanes, with noise that belongs to the episode."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.rollout.sources import ScenarioList, ScenarioStream


def make(count: int, slots: int, seed: int = 0, **settings) -> ScenarioStream:
    return ScenarioStream(count, slots, seed, **settings)


def index(stream: ScenarioStream, slot: int) -> int:
    assignment = stream.next(slot)
    assert assignment is not None
    return assignment.entry.number


def entries(stream: ScenarioStream, slots: int, episodes: int) -> list[int]:
    """Scenario indices of the stream's first entries, in order."""
    return [index(stream, slot) for _ in range(episodes) for slot in range(slots)]


@given(count=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_each_lap_is_a_permutation(count, seed):
    drawn = entries(make(count, 1, seed), 1, 3 * count)
    for lap in range(3):
        assert sorted(drawn[lap * count : (lap + 1) * count]) == list(range(count))


def test_laps_and_seeds_differ():
    one, other = (entries(make(50, 1, seed), 1, 100) for seed in (0, 1))
    orders = [one[:50], one[50:], other[:50], other[50:], list(range(50))]
    assert len({tuple(order) for order in orders}) == 5


def test_the_shuffle_spreads():
    """Neighbours in the stream are unrelated: over many draws each fifth of the enumeration has its share."""
    first = np.array([entries(make(100, 1, seed), 1, 10) for seed in range(100)]).ravel()
    shares = np.bincount(first // 20, minlength=5) / len(first)
    assert np.abs(shares - 0.2).max() < 0.06
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1


def test_a_slots_episodes_do_not_depend_on_when_others_end():
    together, apart = make(30, 3), make(30, 3)
    expected = [[together.next(slot) for slot in range(3)] for _ in range(4)]
    late_first = [[apart.next(slot) for _ in range(4)] for slot in (2, 0, 1)]
    assert [late_first[1], late_first[2], late_first[0]] == [list(column) for column in zip(*expected, strict=True)]


def test_episode_e_of_slot_b_is_entry_e_times_slots_plus_b():
    assert entries(make(60, 4), 4, 5) == entries(make(60, 2), 2, 10) == entries(make(60, 1), 1, 20)


def test_noise_belongs_to_seed_and_entry():
    wide, narrow, other = make(30, 4), make(30, 2), make(30, 4, seed=1)
    keys = [wide.next(slot).key for slot in range(4)]
    narrow.next(0)
    assert narrow.next(0).key == keys[2]
    assert len({*keys, other.next(0).key}) == 5


@pytest.mark.parametrize(("slots", "group_size"), [(6, 2), (6, 3), (7, 3), (2, 5)])
def test_a_group_plays_one_scenario_with_noise_of_its_own(slots, group_size):
    stream = make(30, slots, group_size=group_size)
    groups = -(-slots // group_size)
    single = entries(make(30, groups), groups, 3)
    for episode in range(3):
        played = [stream.next(slot) for slot in range(slots)]
        wanted = [single[episode * groups + slot // group_size] for slot in range(slots)]
        assert [assignment.entry.number for assignment in played] == wanted
        assert len({assignment.key for assignment in played}) == slots


def test_without_partial_reset_a_round_is_one_episode_per_slot():
    stream = make(30, 3, partial_reset=False)
    assert [stream.next(slot) for slot in range(3)] == [None] * 3, "no round has begun"
    rounds = []
    for _ in range(2):
        stream.begin_round()
        rounds += [index(stream, slot) for slot in range(3)]
        assert [stream.next(slot) for slot in range(3)] == [None] * 3
    assert rounds == entries(make(30, 3), 3, 2)


def test_a_stream_goes_on_from_its_state():
    one, other = make(30, 3), make(30, 3)
    entries(one, 3, 2), one.next(1)
    other.load_state_dict(one.state_dict())
    assert [one.next(slot) for slot in range(3)] == [other.next(slot) for slot in range(3)]


@pytest.mark.parametrize("count", [1, 2, 1_000_000])
def test_any_length(count):
    drawn = entries(make(count, 1), 1, min(count, 200))
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) < count


@given(count=st.integers(0, 30), lanes=st.integers(1, 4), slots=st.integers(1, 20))
def test_a_list_is_played_once_in_as_many_slots_as_are_allowed(count, lanes, slots):
    rows = [slice(5 * lane, 5 * lane + 5) for lane in range(lanes)]
    source = ScenarioList(("odd", "evaluation"), range(count), rows, slots)
    given_to: dict[int, list[int]] = {}
    for _ in range(count + 1):
        for slot in range(5 * lanes):
            if (assignment := source.next(slot)) is not None:
                assert assignment.entry[:2] == ("odd", "evaluation")
                given_to.setdefault(slot, []).append(assignment.entry.number)
    assert sorted(i for indices in given_to.values() for i in indices) == list(range(count))
    assert len(given_to) <= max(slots, lanes)


def test_the_noise_of_a_list_belongs_to_the_scenario():
    one, other = (ScenarioList(("a", "evaluation"), range(4), [slice(0, n)]) for n in (1, 4))
    assert [one.next(0) for _ in range(4)] == [other.next(slot) for slot in range(4)]


@given(group_size=st.integers(1, 3), cut=st.integers(1, 5))
def test_players_with_slots_of_their_own_play_what_one_player_of_all_slots_plays(group_size: int, cut: int):
    whole = make(30, 6, group_size=group_size)
    parts = [make(30, 6, group_size=group_size, own=own) for own in (slice(0, cut), slice(cut, 6))]
    for _ in range(3):
        together = [whole.next(slot) for slot in range(6)]
        apart = [part.next(slot) for part, size in zip(parts, (cut, 6 - cut), strict=True) for slot in range(size)]
        assert together == apart
