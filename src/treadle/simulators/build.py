"""From the name of a simulator to one that stands ready, without the core knowing any of them."""

import inspect
import os
import sys
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points

from treadle.config.loading import did_you_mean
from treadle.config.schema import SimulatorConfig
from treadle.errors import ConfigError
from treadle.plugins import import_callable
from treadle.simulators.protocol import Simulator

GROUP = "treadle.simulators"


def installed_simulators() -> dict[str, EntryPoint]:
    """Names of the simulators that installed packages offer, by the entry point group `treadle.simulators`."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP))}


def find_simulator(name: str) -> Callable[..., Simulator]:
    """The class of an installed simulator's name or of `package.module:Class`. Raises ConfigError."""
    if ":" in name:
        return import_callable("simulator.name", name, "class")
    installed = installed_simulators()
    if name not in installed:
        raise ConfigError(
            f"simulator.name: unknown simulator {name!r}{did_you_mean(name, installed)}; "
            f"installed: {', '.join(installed) or 'none'}; or name a class as package.module:Class"
        )
    return import_callable("simulator.name", installed[name].value, "class")


def build_simulator(config: SimulatorConfig, slots: int | None = None) -> Simulator:
    """The simulator of a configuration, with `slots` in place of the configured number where given.

    Raises ConfigError for an unknown name and for options that its class does not take.
    """
    simulator = find_simulator(config.name)
    fixed = {
        "slots": config.slots if slots is None else slots,
        "horizon": config.horizon,
        "threads": config.threads or _cores(),
    }
    _check_options(config, simulator, fixed.keys())
    return simulator(**fixed, **config.options)


def _check_options(config: SimulatorConfig, simulator: Callable[..., Simulator], common: Collection[str]) -> None:
    if doubled := sorted(config.options.keys() & common):
        raise ConfigError(f"simulator.options.{doubled[0]}: set simulator.{doubled[0]} instead")
    parameters = inspect.signature(simulator).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    allowed = [name for name in named if name not in common]
    for option in config.options:
        if option not in allowed:
            raise ConfigError(
                f"simulator.options: {config.name!r} takes no option {option!r}{did_you_mean(option, allowed)}; "
                f"options: {', '.join(allowed) or 'none'}"
            )


def _cores() -> int:
    # In a container the process may use fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
