import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import scenario
from treadle.rollout.stream import ScenarioStream


def make(count: int, slots: int, seed: int = 0) -> ScenarioStream:
    return ScenarioStream([scenario(i) for i in range(count)], slots, seed)


def entries(stream: ScenarioStream, slots: int, episodes: int) -> list[int]:
    """Scenario indices of the stream's first entries, in order."""
    return [stream(slot).index for _ in range(episodes) for slot in range(slots)]


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
    expected = [[together(slot).index for slot in range(3)] for _ in range(4)]
    late_first = [[apart(slot).index for _ in range(4)] for slot in (2, 0, 1)]
    assert [late_first[1], late_first[2], late_first[0]] == [list(column) for column in zip(*expected, strict=True)]


def test_episode_e_of_slot_b_is_entry_e_times_slots_plus_b():
    assert entries(make(60, 4), 4, 5) == entries(make(60, 2), 2, 10) == entries(make(60, 1), 1, 20)


def test_noise_belongs_to_seed_and_entry():
    wide, narrow = make(30, 4), make(30, 2)
    for slot in range(4):
        wide(slot)
    noise = [wide.noise(slot, 3, 5) for slot in range(4)]
    narrow(0), narrow(0)
    assert np.array_equal(narrow.noise(0, 3, 5), noise[2])
    assert np.array_equal(wide.noise(2, 3, 5), noise[2])
    assert len({x.tobytes() for x in noise}) == 4
    other = make(30, 4, seed=1)
    other(0)
    assert not np.array_equal(other.noise(0, 3, 5), noise[0])
    assert noise[0].shape == (3, 5)
    assert noise[0].dtype == np.float32
    assert ((noise[0] >= 0) & (noise[0] < 1)).all()


@pytest.mark.parametrize(("slots", "group_size"), [(6, 2), (6, 3), (7, 3), (2, 5)])
def test_a_group_plays_one_scenario_with_noise_of_its_own(slots, group_size):
    stream = ScenarioStream([scenario(i) for i in range(30)], slots, 0, group_size=group_size)
    groups = -(-slots // group_size)
    single = entries(make(30, groups), groups, 3)
    for episode in range(3):
        played = [stream(slot).index for slot in range(slots)]
        assert played == [single[episode * groups + slot // group_size] for slot in range(slots)]
        assert len({stream.noise(slot, 2, 4).tobytes() for slot in range(slots)}) == slots


def test_without_partial_reset_a_round_is_one_episode_per_slot():
    stream = ScenarioStream([scenario(i) for i in range(30)], 3, 0, partial_reset=False)
    assert [stream(slot) for slot in range(3)] == [None] * 3, "no round has begun"
    rounds = []
    for _ in range(2):
        stream.begin_round()
        rounds += [stream(slot) for slot in range(3)]
        assert [stream(slot) for slot in range(3)] == [None] * 3
    assert [what.index for what in rounds] == entries(make(30, 3), 3, 2)


@pytest.mark.parametrize("count", [1, 2, 1_000_000])
def test_any_length(count):
    stream = ScenarioStream(range(count), 1, 0)  # type: ignore[arg-type]
    drawn = [int(stream(0)) for _ in range(min(count, 200))]  # type: ignore[arg-type]
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) < count
