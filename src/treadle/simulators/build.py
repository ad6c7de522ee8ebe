"""From the name of a simulator to one that stands ready, without the core knowing any of them."""

import inspect
import shutil
import sys
from collections.abc import Callable, Collection
from importlib.metadata import EntryPoint, entry_points

from treadle.config.describe import allows, toml_text, type_words
from treadle.config.schema import SimulatorConfig
from treadle.cores import usable_cores
from treadle.environments.environment import Environment, find_environment
from treadle.environments.interpreter import Interpreter
from treadle.errors import ConfigError, did_you_mean
from treadle.plugins import import_callable, names_code
from treadle.simulators.factory import SimulatorFactory
from treadle.simulators.protocol import Simulator

GROUP = "treadle.simulators"


def installed_simulators() -> dict[str, EntryPoint]:
    """Names of the simulators that installed packages offer, by the entry point group `treadle.simulators`."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP))}


def find_simulator(name: str) -> tuple[str, dict[str, str]]:
    """`package.module:Class` of an installed simulator's name, or of such a text itself, and options that the name
    holds: `NAME:ID` is the installed simulator NAME with option `id`.

    Raises ConfigError.
    """
    installed = installed_simulators()
    if name in installed:
        return installed[name].value, {}
    family, _, identity = name.partition(":")
    if identity and family in installed:
        target = installed[family].value
        if not _takes_id(target):
            raise ConfigError(f"simulator.name: {name!r:.120}: {family!r} takes no id behind a colon; write {family}")
        return target, {"id": identity}
    if not names_code(name):
        raise ConfigError(
            f"simulator.name: unknown simulator {name!r:.120}{did_you_mean(family, installed)}; "
            f"installed: {', '.join(installed) or 'none'}; or name a class as package.module:Class"
        )
    return name, {}


def is_family(name: str) -> bool:
    """Whether an installed simulator's name stands for many, `NAME:ID` for each of them. Raises ConfigError."""
    return name in (installed := installed_simulators()) and _takes_id(installed[name].value)


def _takes_id(target: str) -> bool:
    return "id" in inspect.signature(import_callable("simulator.name", target, "class")).parameters


def simulator_environment(name: str) -> Environment | None:
    """The environment of its own that a simulator has, installed or not. Raises ConfigError and SimulatorError."""
    target, _ = find_simulator(name)
    family = name.partition(":")[0]
    return find_environment(family if family in installed_simulators() else name, target)


def check_simulator(config: SimulatorConfig) -> None:
    """Raises ConfigError for an unknown name, and for options that its class does not take. Its environment need not be
    installed.
    """
    _target(config)


def simulator_factory(config: SimulatorConfig, threads: int | None = None) -> SimulatorFactory:
    """What makes the simulators of a configuration, with `threads` in place of the configured number where given.

    Raises:
        ConfigError: As `check_simulator`, or an interpreter that is not there.
        SimulatorError: Its environment is not installed.
    """
    target, named = _target(config)
    fixed = {"horizon": config.horizon, "threads": config.threads or threads or len(usable_cores()), **named}
    return SimulatorFactory(target, fixed | config.options, _interpreter(config))


def _target(config: SimulatorConfig) -> tuple[str, dict[str, str]]:
    """As `find_simulator`, with options that its class takes."""
    target, named = find_simulator(config.name)
    # A class that lives in an interpreter which the user chose need not be there in this one.
    if config.python is None:
        common = {"slots", "horizon", "threads", *named}
        _check_options(config, import_callable("simulator.name", target, "class"), common)
    return target, named


def _interpreter(config: SimulatorConfig) -> Interpreter | None:
    """Where a simulator's processes run; None where it may live in this one."""
    environment = simulator_environment(config.name)
    if config.python is None:
        return None if environment is None else environment.interpreter()
    python = shutil.which(config.python)
    if python is None:
        raise ConfigError(
            f"simulator.python: found {config.python!r}, which is no program here; give the path of a Python "
            f"interpreter, such as {sys.executable}"
        )
    return Interpreter(python, {} if environment is None else dict(environment.variables))


def _check_options(config: SimulatorConfig, simulator: Callable[..., Simulator], common: Collection[str]) -> None:
    if doubled := sorted(config.options.keys() & common):
        raise ConfigError(f"simulator.options.{doubled[0]}: set simulator.{doubled[0]} instead")
    signature = inspect.signature(simulator)
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    named = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    allowed = [name for name in named if name not in common]
    for option, value in config.options.items():
        if option not in allowed:
            raise ConfigError(
                f"simulator.options: {config.name!r} takes no option {option!r}{did_you_mean(option, allowed)}; "
                f"options: {', '.join(allowed) or 'none'}"
            )
        annotation = signature.parameters[option].annotation
        told = annotation is not inspect.Parameter.empty and not isinstance(annotation, str)
        if told and not allows(annotation, value):
            raise ConfigError(
                f"simulator.options.{option}: found {toml_text(value)}, allowed is {type_words(annotation)}"
            )
