"""From the placement that a recipe asks for to processes, slots and devices."""

from itertools import pairwise
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from treadle.config.loading import read_config
from treadle.config.on_policy import GRPOConfig
from treadle.config.placement import DeviceRange, PlacementConfig, parse_devices
from treadle.config.schema import CollectionConfig, SimulatorConfig, TrainConfig
from treadle.errors import ConfigError, PlacementError
from treadle.runtime.cluster.messages import Part, routes
from treadle.runtime.placement import Machines, Placement, place

LAPTOP = Machines("cpu", ((0, 1),))
EIGHT = Machines("cuda", (tuple(range(8)),))
TWO_NODES = Machines("cuda", ((0, 1, 2, 3), (0, 1, 2, 3)), ("node0 (a)", "node1 (b)"))


def config(slots: int = 16, group: int = 1, lanes: int = 0, **placement: Any) -> TrainConfig:
    algorithm = {"algorithm": GRPOConfig(group_size=group)} if group > 1 else {}
    return TrainConfig(
        simulator=SimulatorConfig(slots=slots),
        collection=CollectionConfig(lanes=lanes),
        placement=PlacementConfig(**placement),
        **algorithm,
    )


def summary(placement: Placement) -> list[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Machine, and devices that simulate, generate and train, of each process."""
    return [
        (
            p.node,
            p.player.simulate if p.player else (),
            p.player.generate if p.player else (),
            p.rank.train if p.rank else (),
        )
        for p in placement.processes
    ]


def test_devices_are_read_as_written():
    assert parse_devices("all") == [DeviceRange(None, 0, None)]
    assert parse_devices("0, 2,5-7") == [DeviceRange(None, 0, 0), DeviceRange(None, 2, 2), DeviceRange(None, 5, 7)]
    assert parse_devices("node0:0-3,node1:all") == [DeviceRange(0, 0, 3), DeviceRange(1, 0, None)]


@pytest.mark.parametrize("text", ["", "gpu0", "0-", "-1", "node:1", "0;1", "1.5", "node0:0-3:1"])
def test_what_is_no_device_is_refused(text: str):
    with pytest.raises(ConfigError, match=r"placement.train: found .* allowed are all, a number, a range"):
        read_config(TrainConfig, None, [f'placement.train="{text}"'])


def test_a_range_that_ends_before_it_begins():
    with pytest.raises(ConfigError, match=r"found '3-1' in '3-1', which ends before it begins; write 1-3"):
        read_config(TrainConfig, None, ['placement.train="3-1"'])


def test_a_number_may_be_written_without_quotes():
    assert read_config(TrainConfig, None, ["placement.train=1"]).placement.train == "1"


def test_defaults_are_one_process_on_a_laptop_and_with_one_gpu():
    for machines in (LAPTOP, Machines("cuda", ((0,),))):
        placement = place(config(), machines)
        assert placement.alone
        assert placement.mode == "colocated"
        assert placement.processes[0].name == "player 0 and rank 0"
    assert summary(place(config(), LAPTOP)) == [(0, (), (), ())], "no role is pinned"


def test_defaults_use_every_gpu():
    placement = place(config(slots=20), EIGHT)
    assert placement.mode == "colocated"
    assert summary(placement) == [(0, (i,), (i,), (i,)) for i in range(8)]
    assert [p.slots for p in placement.players] == [p.slots for p in placement.ranks]
    assert [p.slots.stop - p.slots.start for p in placement.players] == [2, 3, 2, 3, 2, 3, 2, 3]


def test_the_published_hybrid():
    placement = place(config(simulate="0-3", generate="4-7", train="0-7"), EIGHT)
    assert placement.mode == "hybrid"
    players = [(0, (i,), (4 + i,), (4 + i,)) for i in range(4)]
    assert summary(placement) == [*players, *[(0, (), (), (i,)) for i in range(4)]]
    assert [p.name for p in placement.processes[:2]] == ["player 0 and rank 4", "player 1 and rank 5"]


def test_disaggregated():
    placement = place(config(simulate="0-1", generate="2-3", train="4-7"), EIGHT)
    assert placement.mode == "disaggregated"
    assert len(placement.processes) == 6
    placement = place(config(simulate="0", generate="0", train="1"), LAPTOP)
    assert placement.mode == "disaggregated"
    assert summary(placement) == [(0, (0,), (0,), ()), (0, (), (), (1,))]


def test_cores_of_their_own_in_one_process():
    placement = place(config(simulate="0", generate="1"), LAPTOP)
    assert placement.alone
    assert placement.mode == "hybrid"
    assert summary(placement) == [(0, (0,), (1,), ())]


def test_players_and_ranks_share_cores():
    placement = place(config(players=2, ranks=2), LAPTOP)
    assert summary(placement) == [(0, (0,), (0,), (0,)), (0, (1,), (1,), (1,))]
    placement = place(config(players=1, ranks=3), LAPTOP)
    assert [p.train for p in placement.ranks] == [(0,), (1,), (0,)]
    assert len(placement.processes) == 3


def test_several_machines_count_on_or_by_node():
    for generate in ("0-7", "all", "node0:all,node1:0-3"):
        placement = place(config(generate=generate, train="all"), TWO_NODES)
        assert [p.node for p in placement.processes] == [0] * 4 + [1] * 4
    placement = place(config(simulate="node1:0-1", generate="node1:2-3", train="node0:all"), TWO_NODES)
    assert summary(placement)[:3] == [(1, (0,), (2,), ()), (1, (1,), (3,), ()), (0, (), (), (0,))]


def test_what_a_lost_machine_had_is_left_out():
    machines = Machines(TWO_NODES.kind, TWO_NODES.devices, TWO_NODES.names, frozenset({1}))
    placement = place(config(), machines)
    assert [(p.node, p.name) for p in placement.processes] == [(0, f"player {i} and rank {i}") for i in range(4)]
    with pytest.raises(PlacementError, match=r"placement.train: found 'node1:all', all of whose machines are gone"):
        place(config(train="node1:all"), machines)


@pytest.mark.parametrize(
    ("given", "machines", "message"),
    [
        ({"train": "0-8"}, EIGHT, r"placement.train: found '0-8', this run has 8 devices, numbered from 0 to 7"),
        ({"train": "2"}, LAPTOP, r"placement.train: found '2', this run has 2 cores, numbered from 0 to 1"),
        ({"generate": "node1:4"}, TWO_NODES, r"placement.generate: found 'node1:4', node1 has 4 devices"),
        ({"generate": "node2:0"}, TWO_NODES, r"found node2 in 'node2:0', the run has 2 machines, node0 to node1"),
        ({"simulate": "node0:all"}, TWO_NODES, r"placement.simulate: .* no device of node1 \(b\), where player 4"),
        ({"players": 3}, EIGHT, r"placement.players: found 3, each graphics card .* and there are 8; leave"),
        ({"ranks": 2, "train": "0"}, EIGHT, r"placement.ranks: found 2, .* there are 1"),
        ({"slots": 4}, EIGHT, r"placement.players: 8 players with simulator.slots 4, .* use at most 4 players"),
        ({"slots": 16, "group": 4}, EIGHT, r"4 groups of algorithm.group_size 4: .* or simulator.slots=32"),
        ({"lanes": 3}, EIGHT, r"collection.lanes 3 with 2 slots of a player"),
        ({"players": 1}, Machines("cpu", ((0,), (0,)), ("a", "b")), r"placement.players: found 1, .* on 2 machines"),
    ],
)
def test_what_cannot_be_is_an_error(given: dict[str, Any], machines: Machines, message: str):
    with pytest.raises(PlacementError, match=message):
        place(config(**given), machines)


@hypothesis.given(
    slots=strategies.integers(1, 60),
    group=strategies.integers(1, 5),
    players=strategies.integers(1, 4),
    ranks=strategies.integers(1, 4),
)
def test_every_slot_has_one_player_and_one_rank_and_groups_are_whole(slots: int, group: int, players: int, ranks: int):
    hypothesis.assume(-(-slots // group) >= max(players, ranks))
    placement = place(config(slots=slots, group=group, players=players, ranks=ranks), LAPTOP)
    for places in (placement.players, placement.ranks):
        assert places[0].slots.start == 0
        assert places[-1].slots.stop == slots
        for one, other in pairwise(places):
            assert one.slots.stop == other.slots.start
            assert one.slots.stop % group == 0
    # The parts of each rank are its slots, in order.
    for rank, route in zip(placement.ranks, routes(placement), strict=True):
        firsts = [p.slots.start for p in placement.players]
        found = [slot + firsts[part.player] for part in route for slot in range(part.first, part.stop)]
        assert found == list(range(rank.slots.start, rank.slots.stop))


def test_routes_by_hand():
    placement = place(config(slots=7, players=2, ranks=3), LAPTOP)
    # Players have slots 0-2 and 3-6, ranks 0-1, 2-3 and 4-6.
    assert routes(placement) == [[Part(0, 0, 2)], [Part(0, 2, 3), Part(1, 0, 1)], [Part(1, 1, 4)]]
