"""From the name of a simulator to one that stands ready, without the core knowing any of them."""

import inspect
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points

from treadle.config.loading import did_you_mean
from treadle.config.schema import SimulatorConfig
from treadle.cores import usable_cores
from treadle.errors import ConfigError
from treadle.plugins import import_callable
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.protocol import Simulator

GROUP = "treadle.simulators"


def installed_simulators() -> dict[str, EntryPoint]:
    """Names of the simulators that installed packages offer, by the entry point group `treadle.simulators`."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP))}


def find_simulator(name: str) -> str:
    """`package.module:Class` of an installed simulator's name, or of such a text itself; it can be imported.

    Raises ConfigError.
    """
    target = name
    if ":" not in name:
        installed = installed_simulators()
        if name not in installed:
            raise ConfigError(
                f"simulator.name: unknown simulator {name!r}{did_you_mean(name, installed)}; "
                f"installed: {', '.join(installed) or 'none'}; or name a class as package.module:Class"
            )
        target = installed[name].value
    import_callable("simulator.name", target, "class")
    return target


def simulator_factory(config: SimulatorConfig, threads: int | None = None) -> SimulatorFactory:
    """What makes the simulators of a configuration, with `threads` in place of the configured number where given.

    Raises ConfigError for an unknown name and for options that its class does not take.
    """
    target = find_simulator(config.name)
    fixed = {"horizon": config.horizon, "threads": config.threads or threads or len(usable_cores())}
    _check_options(config, import_callable("simulator.name", target, "class"), {"slots", *fixed})
    return SimulatorFactory(target, fixed | config.options)


def build_simulator(config: SimulatorConfig, slots: int | None = None) -> Simulator:
    """The simulator of a configuration, with `slots` in place of the configured number where given.

    Raises ConfigError for an unknown name and for options that its class does not take.
    """
    return simulator_factory(config)(config.slots if slots is None else slots)


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
