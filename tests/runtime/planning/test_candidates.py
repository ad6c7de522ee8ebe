"""Which way to run is recommended, on profiles that make it plain."""

from dataclasses import replace

from treadle.config.loading import load_recipe
from treadle.runtime.placement import Machines, place
from treadle.runtime.planning.candidates import as_configured, candidates, recommend
from treadle.runtime.planning.profile import Affine, Profile

CORES = Machines("cpu", ((0, 1),))
EVEN = Profile("even", {1: Affine(0, 0.01)}, {1: Affine(0, 0.01)}, {1: Affine(0, 0.002)})


def recipe(*overrides: str):
    return load_recipe("quickstart", ["simulator.slots=64", *overrides])


def test_training_that_takes_long_gets_devices_and_overlap():
    found = candidates(recipe(), CORES, replace(EVEN, learn={1: Affine(0, 0.02)}))
    best = recommend(found)
    assert (best.config.overlap, best.config.placement.train) == ("async", "1")
    assert best.bound[0] == "train"
    assert best.bound[1] > 0.95
    assert found == sorted(found, key=lambda c: c.seconds)
    # What is as fast and simpler wins: with nothing to learn, overlap has nothing to give.
    idle = recommend(candidates(recipe(), CORES, replace(EVEN, learn={1: Affine(0, 0.0)})))
    assert idle.config.overlap == "none"


def test_roles_that_share_a_device_gain_nothing_from_lanes():
    def seconds(machines: Machines, lanes: int) -> float:
        config = recipe(f"collection.lanes={lanes}")
        return as_configured(config, place(config, machines), EVEN).seconds

    assert seconds(CORES, 1) > seconds(CORES, 2), "two workers, a core each"
    colocated = [seconds(Machines("cpu", ((0,),)), lanes) for lanes in (1, 2, 4)]
    assert max(colocated) - min(colocated) < 1e-9


def test_overrides_make_the_candidate():
    best = recommend(candidates(recipe(), CORES, EVEN))
    again = load_recipe("quickstart", ["simulator.slots=64", *best.overrides])
    assert as_configured(again, place(again, CORES), EVEN).seconds == best.seconds


def test_stream_is_looked_at_where_updates_can_begin_early():
    streaming = ("algorithm.rounds=2", "algorithm.minibatch=10000", "algorithm.normalize_advantages=false")
    overlaps = {candidate.config.overlap for candidate in candidates(recipe(*streaming), CORES, EVEN)}
    assert overlaps == {"none", "stream", "async"}
    assert {candidate.config.overlap for candidate in candidates(recipe(), CORES, EVEN)} == {"none", "async"}
