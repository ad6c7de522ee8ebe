"""Timelines on paper, against schedules that were drawn by hand."""

from dataclasses import replace
from typing import Any

import pytest

from treadle.config.loading import load_recipe
from treadle.runtime.placement import Machines, place
from treadle.runtime.planning.profile import Affine, Profile
from treadle.runtime.planning.shape import PlayerShape, RankShape, Shape, one_of_each, shape_of
from treadle.runtime.planning.timeline import _Simulation, simulate_timeline

A, B, C = (frozenset({("device", 0, number)}) for number in range(3))
PROFILE = Profile("by hand", {1: Affine(0, 1.0)}, {1: Affine(0, 0.5)}, {1: Affine(0, 0.25)})
"""A slot's chunk takes 1 s, its decision 0.5 s, learning from a decision 0.25 s."""


def shape(lanes: int = 1, *, generate: Any = B, workers: Any = (A,), train: Any = C, **fields: Any) -> Shape:
    """Four slots with two decisions each."""
    player = PlayerShape(4, lanes, generate, workers)
    return Shape((player,), (RankShape(1.0, train),), **({"decisions": 2} | fields))


def seconds(*arguments: Any, profile: Profile = PROFILE, **fields: Any) -> float:
    return simulate_timeline(shape(*arguments, **fields), profile).seconds


def test_an_affine_cost_goes_through_its_measurements():
    cost = Affine.through((2, 1.0), (4, 1.5))
    assert (cost.fixed, cost.each, cost(0), cost(2), cost(8)) == (0.5, 0.25, 0, 1.0, 2.5)
    # Neither noise nor rounding makes a part negative.
    assert min(Affine.through((1, 0.01), (n, n * 0.07)).fixed for n in range(2, 100)) == 0
    assert Affine.through((2, 2.0), (4, 1.5)) == Affine(1.5, 0.0)
    assert Affine.through((2, 0.5), (4, 2.0)) == Affine(0.0, 0.5)


def test_lockstep_takes_turns():
    # Two decisions of 4 slots: 2 x (2 + 4); learning from 8 decisions: 2.
    assert seconds() == 12 + 2
    # It makes no difference where the turns are taken.
    assert seconds(generate=A, train=A) == 14


def test_two_lanes_overlap_simulating_with_generating_on_devices_of_their_own():
    # Lanes of two slots decide in 1 s and play in 2 s. The simulator waits for the first decision alone: 1 + 4 x 2.
    assert seconds(2) == 9 + 2
    # On one device they take turns as before.
    assert seconds(2, generate=A, train=A) == 14
    # A worker for each lane: lane 0 is decided 0-1, played 1-3, 3-4, 4-6; lane 1 a second later.
    assert seconds(2, workers=(A, C), train=B) == 7 + 2
    # Two workers divide one lane.
    assert seconds(1, workers=(A, C), train=B) == 2 * (2 + 2) + 2


def test_stream_and_async_train_beside_playing():
    # Two rollouts of 12 s, and 2 s of learning from each.
    assert seconds(rollouts=2) == 24 + 4
    assert seconds(rollouts=2, overlap="stream", streams=True) == 24 + 2
    # Whose update waits for its last rollout gains nothing.
    assert seconds(rollouts=2, overlap="stream") == 28
    assert seconds(overlap="async", staleness=1) == 12
    slow = replace(PROFILE, learn={1: Affine(0, 2.0)})
    assert seconds(profile=slow, overlap="async", staleness=1) == 16
    # The first is learnt from while the second is played; from then on the trainer is busy.
    assert seconds(profile=slow, rollouts=2, overlap="stream", streams=True) == 12 + 32
    # On the same device nothing is gained.
    assert seconds(generate=A, train=A, overlap="async", staleness=1) == 14


def test_publishing_and_what_has_ended_count():
    assert seconds(profile=replace(PROFILE, publish=0.5)) == 14.5
    # At the second decision half of the slots play: 6 + 3, and 6 decisions to learn from.
    assert seconds(profile=replace(PROFILE, playing=(1.0, 0.5))) == 9 + 1.5


def test_a_change_of_role_takes_its_time():
    slow = replace(PROFILE, switch=0.1)
    # Roles on devices of their own never change.
    assert seconds(profile=slow) == 14
    # On one device an iteration decides, plays, decides, plays and learns: five changes.
    assert seconds(generate=A, train=A, profile=slow) == pytest.approx(14 + 5 * 0.1)
    # Simulating and generating apart, on both of which is learnt: the first of each, and learning itself.
    assert seconds(train=A | B, profile=slow) == pytest.approx(14 + 3 * 0.1)


def test_roles_that_want_the_same_device_slow_each_other():
    slow = replace(PROFILE, contention=1.5)
    # One lane takes turns, and nobody waits.
    assert seconds(generate=A, train=A, profile=slow) == 14
    # With two, whatever plays runs beside the other role; learning does not.
    assert seconds(2, generate=A, train=A, profile=slow) == pytest.approx(1.5 * 12 + 2)
    # With async learning too: 18 and 3 s of the same device.
    together = seconds(1, generate=A, train=A, overlap="async", staleness=1, profile=slow)
    assert together == pytest.approx(1.5 * 14)
    # Lanes that wait for the same role are not slowed.
    assert seconds(2, profile=slow) == seconds(2)


def test_players_and_ranks_wait_for_the_slowest_of_them():
    one, other = PlayerShape(2, 1, A, (A,)), PlayerShape(2, 1, B, (B,))
    ranks = (RankShape(0.25, A), RankShape(0.75, B))
    # Each player: 2 x (1 + 2); of 8 decisions, 6 on the second rank.
    assert simulate_timeline(Shape((one, other), ranks, 2), PROFILE).seconds == 6 + 1.5


def test_costs_are_those_of_as_many_devices():
    both = A | B
    faster = replace(PROFILE, learn={1: Affine(0, 0.25), 2: Affine(0, 0.125)})
    assert seconds(profile=faster, train=both) == 12 + 1
    assert seconds(profile=faster, train=A | B | C) == 12 + 1
    assert seconds(train=both) == 14


def test_busy_shares_are_of_the_time_after_the_first_iteration():
    busy = simulate_timeline(shape(), PROFILE).busy()
    assert busy == pytest.approx({"simulate": 8 / 14, "generate": 4 / 14, "train": 2 / 14})


def test_the_shape_of_a_run_follows_its_placement():
    def found(machines: Machines, *overrides: str, recipe: str = "quickstart", profile: Profile = PROFILE) -> Shape:
        config = load_recipe(recipe, list(overrides))
        return shape_of(config, place(config, machines), profile)

    cores, cards = Machines("cpu", ((0, 1),)), Machines("cuda", ((0, 1),))
    apart = ("placement.simulate=0", "placement.generate=0", "placement.train=1")
    # Simulator and policy share a core: one lane, unless the recipe asks for more.
    assert found(cores, *apart) == Shape((PlayerShape(256, 1, A, (A,)),), (RankShape(1.0, B),), 10)
    assert found(cores, *apart, "collection.lanes=2").players == (PlayerShape(256, 2, A, (A, A)),)
    assert found(cores, "placement.simulate=0", "placement.generate=1").players == (PlayerShape(256, 2, B, (A,)),)
    whole = ("collection.workers=2", "algorithm.rounds=3", "overlap=async", "max_staleness=2")
    shape = found(cores, *whole, recipe="quickstart-grpo")
    assert shape.players == (PlayerShape(256, 1, A | B, (A, B)),)
    assert (shape.ranks, shape.rollouts, shape.overlap, shape.staleness) == ((RankShape(1.0, A | B),), 3, "async", 2)
    # Simulators that play on the host leave the cards alone.
    host = replace(PROFILE, simulates_on="host")
    (player,) = found(cards, *apart, profile=host).players
    shares = tuple(frozenset({("host", 0, number)}) for number in (0, 1))
    assert (player.generate, player.workers) == (A, shares), "whole the machine's processors"
    players = found(cards, profile=host).players
    assert [player.workers for player in players] == [shares[:1], shares[1:]]


def test_of_groups_that_are_alike_one_is_played():
    """Two players on two devices each, with a rank on each device of theirs, and a third that has more slots."""
    devices = [frozenset({("device", 0, number)}) for number in range(6)]
    players = tuple(PlayerShape(slots, 2, devices[2 * i], (devices[2 * i + 1],)) for i, slots in enumerate((4, 4, 6)))
    ranks = tuple(RankShape(1 / 6, own) for own in devices)
    first, alike = one_of_each(Shape(players, ranks, 3))
    assert first == Shape((players[0], players[2]), (*ranks[:2], *ranks[4:]), 3)
    assert alike[("device", 0, 1)] == (("device", 0, 1), ("device", 0, 3))
    assert alike[("device", 0, 4)] == (("device", 0, 4),)


@pytest.mark.parametrize("overlap", [{}, {"overlap": "async", "staleness": 1}, {"overlap": "stream", "streams": True}])
@pytest.mark.parametrize("train", [(0, 1, 2, 3), (4,), (1, 2)])
def test_what_is_played_for_all_is_what_each_would_have_played(overlap: dict[str, Any], train: tuple[int, ...]):
    devices = [frozenset({("device", 0, number)}) for number in range(5)]
    players = tuple(PlayerShape(4, 2, devices[2 * i], (devices[2 * i + 1], devices[2 * i])) for i in range(2))
    ranks = tuple(RankShape(1 / len(train), devices[number]) for number in train)
    shape = Shape(players, ranks, 3, rollouts=2, **overlap)
    each = {device: (device,) for own in devices for device in own}
    found, whole = simulate_timeline(shape, PROFILE), _Simulation(shape, PROFILE, 6, 8, each).run()
    assert found.seconds == pytest.approx(whole.seconds)
    assert found.busy() == pytest.approx(whole.busy())
    first = [[bar for bar in timeline.bars if bar.iteration < 3] for timeline in (found, whole)]
    assert sorted(map(str, first[0])) == sorted(map(str, first[1]))
