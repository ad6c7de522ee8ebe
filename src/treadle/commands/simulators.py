"""Simulators on the command line: which there are, and installing what they need."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from treadle.errors import ConfigError
from treadle.simulators.build import installed_simulators, simulator_environment
from treadle.simulators.environments import Environment
from treadle.simulators.install import install, missing_packages, packages_fix

_LINE_SECONDS = 10.0
"""Between two lines of progress, where there is no terminal."""


def simulators_table() -> Table:
    """A line for each simulator."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("simulator", "what", "environment"):
        table.add_column(column, overflow="fold")
    for name in installed_simulators():
        environment = simulator_environment(name)
        summary = "" if environment is None else environment.summary
        table.add_row(Text(name, "bold"), escape(summary), escape(_state(environment)))
    return table


def install_environments(names: Sequence[str], every: bool, *, force: bool, system: bool) -> None:
    """Install the environments of some simulators, one after another, with progress on the console.

    Raises:
        ConfigError: An unknown simulator, or none was named.
        SimulatorError: An environment could not be made.
    """
    known = {name: simulator_environment(name) for name in installed_simulators()}
    if not names and not every:
        own = ", ".join(name for name, environment in known.items() if environment is not None)
        raise ConfigError(f"name a simulator, or give --all; those with an environment of their own: {own or 'none'}")
    if names:
        known = {name: simulator_environment(name) for name in names}
    for name, environment in known.items():
        if environment is not None:
            _install(environment, force, system)
        elif names:
            Console().print(f"{name}: needs no environment of its own", highlight=False)


def _install(environment: Environment, force: bool, system: bool) -> None:
    console, began, last = Console(), time.monotonic(), -_LINE_SECONDS
    name = environment.name

    def clock() -> str:
        minutes, seconds = divmod(round(time.monotonic() - began), 60)
        return f"{minutes}:{seconds:02d}"

    with console.status(f"installing {name}") as status:

        def progress(text: str) -> None:
            nonlocal last
            line = escape(f"[{clock()}] {name}: {text}")
            status.update(line)
            if not console.is_terminal and time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                console.print(line, highlight=False, soft_wrap=True)

        done = install(environment, progress, force=force, system=system)
    said = f"{name}: {'installed' if done else 'is installed'} in {environment.path} [{clock()}]"
    console.print(escape(said), highlight=False, soft_wrap=True)
    if missing := environment.missing_assets():
        console.print(escape(assets_text(missing)), highlight=False, soft_wrap=True)


def assets_text(missing: Sequence[Path], shown: int = 3) -> str:
    """Which files are missing, and where they belong."""
    more = f" and {len(missing) - shown} more" if len(missing) > shown else ""
    return f"assets are missing: {', '.join(map(str, missing[:shown]))}{more}"


def _state(environment: Environment | None) -> str:
    if environment is None:
        return "none needed"
    if environment.stamp() is not None:
        return f"installed in {environment.path}"
    if not environment.unmet_here():
        return "this Python has what it needs"
    if missing := missing_packages(environment):
        return f"not installed; first {packages_fix(missing)}, then treadle simulators install {environment.name}"
    return f"not installed; treadle simulators install {environment.name}"
