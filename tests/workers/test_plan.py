"""From a configuration to a crew: what it leaves open is chosen for the machine."""

import pytest

from treadle.config.schema import CollectionConfig, SimulatorConfig, TrainConfig
from treadle.errors import ConfigError, PlacementError
from treadle.workers import plan as module
from treadle.workers.crew import CrewPlan
from treadle.workers.plan import plan_crew


def plan(
    cores: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    slots: int = 8,
    accelerated: bool = False,
    simulate: tuple[int, ...] = (),
    generate: tuple[int, ...] = (),
    **fields,
) -> CrewPlan:
    monkeypatch.setattr(module, "usable_cores", lambda: tuple(range(cores)))
    monkeypatch.setattr(module, "check_cores", lambda key, wanted: None)
    config = CollectionConfig(**fields)
    return plan_crew(
        SimulatorConfig(slots=slots),
        config,
        accelerated=accelerated,
        simulate_cores=simulate,
        generate_cores=generate,
    )


@pytest.mark.parametrize(
    ("cores", "accelerated", "lanes", "threads"),
    [(1, False, 1, 1), (2, False, 1, 2), (2, True, 2, 1), (16, False, 2, 8), (16, True, 2, 8)],
)
def test_defaults_by_machine(monkeypatch: pytest.MonkeyPatch, cores: int, accelerated: bool, lanes: int, threads: int):
    chosen = plan(cores, monkeypatch, accelerated=accelerated)
    assert (chosen.lanes, chosen.workers, chosen.kind) == (lanes, lanes, "threads")
    assert chosen.factory.options["threads"] == threads


def test_cores_of_their_own_make_two_lanes(monkeypatch: pytest.MonkeyPatch):
    chosen = plan(2, monkeypatch, simulate=(0,), generate=(1,))
    assert (chosen.lanes, chosen.workers, chosen.cores) == (2, 1, (0,))
    assert chosen.factory.options["threads"] == 1


def test_never_more_lanes_than_slots(monkeypatch: pytest.MonkeyPatch):
    assert plan(16, monkeypatch, slots=1).lanes == 1
    for name in ("lanes", "workers"):
        with pytest.raises(ValueError, match=rf"collection.{name} 9 with simulator.slots 8"):
            TrainConfig(simulator=SimulatorConfig(slots=8), collection=CollectionConfig(**{name: 9}))


def test_what_cannot_be_is_an_error():
    with pytest.raises(PlacementError, match=r"placement.generate: found core 4096"):
        plan_crew(SimulatorConfig(), CollectionConfig(), accelerated=False, generate_cores=(4096,))
    with pytest.raises(ConfigError, match=r"unknown simulator 'tabletopp'"):
        plan_crew(SimulatorConfig(name="tabletopp"), CollectionConfig(), accelerated=False)
