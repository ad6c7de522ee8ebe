"""From names to simulators."""

from typing import Any

import pytest

from treadle.config.schema import SimulatorConfig
from treadle.cores import usable_cores
from treadle.errors import ConfigError
from treadle.simulators.build import installed_simulators, simulator_factory


class Recorder:
    """A simulator that keeps how it was called."""

    def __init__(self, slots: int, *, horizon: int, threads: int, size: int = 8) -> None:
        self.called = {"slots": slots, "horizon": horizon, "threads": threads, "size": size}


class Anything(Recorder):
    def __init__(self, **options: Any) -> None:
        self.called = options


HERE = f"{__name__}:Recorder"


def called(config: SimulatorConfig, slots: int = 3) -> dict[str, Any]:
    simulator: Any = simulator_factory(config)(slots)
    return simulator.called


def test_tabletop_is_installed():
    assert "tabletop" in installed_simulators()


def test_a_class_is_called_with_the_configuration():
    config = SimulatorConfig(name=HERE, horizon=5, threads=2, options={"size": 9})
    assert called(config) == {"slots": 3, "horizon": 5, "threads": 2, "size": 9}
    assert called(config, slots=1)["slots"] == 1


def test_threads_0_are_the_cores():
    assert called(SimulatorConfig(name=HERE))["threads"] == len(usable_cores())


def test_a_class_that_takes_any_option_gets_it():
    assert called(SimulatorConfig(name=f"{__name__}:Anything", options={"x": 1}))["x"] == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tabeltop", "unknown simulator 'tabeltop', did you mean 'tabletop'?; installed: "),
        ("no_such_module:Class", "No module named 'no_such_module'"),
        ("json:Nothing", "module 'json' has no class 'Nothing'"),
        (":Class", "unknown simulator ':Class'"),
        (".a:b", "or name a class as package.module:Class"),
    ],
)
def test_names_that_lead_nowhere(name, said):
    with pytest.raises(ConfigError) as caught:
        simulator_factory(SimulatorConfig(name=name))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sise": 3}, "takes no option 'sise', did you mean 'size'?; options: size"),
        ({"slots": 3}, "simulator.options.slots: set simulator.slots instead"),
    ],
)
def test_options_that_the_class_does_not_take(options, said):
    with pytest.raises(ConfigError) as caught:
        simulator_factory(SimulatorConfig(name=HERE, options=options))
    assert said in str(caught.value)
