"""Which simulators there are, and installing what they need, with progress on the console."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Lock

from rich.console import Console
from rich.markup import escape

from treadle.cores import usable_cores
from treadle.environments.environment import Environment
from treadle.environments.install import install, missing_packages, packages_fix
from treadle.errors import ConfigError
from treadle.reporting.console import clock
from treadle.simulators.build import installed_simulators, simulator_environment

_LINE_SECONDS = 10.0
"""Between two lines of progress, where there is no terminal."""


def simulator_list() -> list[tuple[str, str]]:
    """The simulators, each with what it is and the state of its environment."""
    found: list[tuple[str, str]] = []
    for name in installed_simulators():
        environment = simulator_environment(name)
        summary = f"{environment.summary}; " if environment is not None and environment.summary else ""
        found.append((name, f"{summary}{_state(environment)}"))
    return found


def install_environments(names: Sequence[str], every: bool, *, force: bool, system: bool) -> None:
    """Install the environments of some simulators, as many at a time as there are cores, with progress on the console.

    Raises ConfigError for an unknown simulator, or where none was named, and SimulatorError where an environment could
    not be made; the others are installed all the same.
    """
    known = {name: simulator_environment(name) for name in installed_simulators()}
    if not names and not every:
        own = ", ".join(name for name, environment in known.items() if environment is not None)
        raise ConfigError(f"name a simulator, or give --all; those with an environment of their own: {own or 'none'}")
    if names:
        known = {name: simulator_environment(name) for name in names}
        for name in (name for name, environment in known.items() if environment is None):
            Console().print(f"{name}: needs no environment of its own", highlight=False)
    chosen = [environment for environment in known.values() if environment is not None]
    shown = _Installation()
    with shown.status, ThreadPoolExecutor(len(usable_cores())) as pool:
        jobs = [pool.submit(shown.install, environment, force, system) for environment in chosen]
        try:
            wait(jobs)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # none that has not begun
            raise
    for job in jobs:
        job.result()


class _Installation:
    """The console of several installations side by side; each has a line."""

    def __init__(self) -> None:
        self._console = Console()
        self.status = self._console.status("installing")
        self._began = time.monotonic()
        self._lock = Lock()
        self._lines: dict[str, str] = {}
        self._printed: dict[str, float] = {}

    def install(self, environment: Environment, force: bool, system: bool) -> None:
        """Install one; to be called in a thread of its own."""
        name = environment.name
        try:
            done = install(environment, partial(self._progress, name), force=force, system=system)
        finally:
            with self._lock:
                self._lines.pop(name, None)
        self._print(f"{name}: {'installed' if done else 'is installed'} in {environment.path} [{self._clock()}]")
        if missing := environment.missing_assets():
            self._print(assets_text(missing))

    def _progress(self, name: str, text: str) -> None:
        line, now = f"[{self._clock()}] {name}: {text}", time.monotonic()
        with self._lock:
            self._lines[name] = line
            self.status.update(escape("\n".join(self._lines.values())))
            due = now - self._printed.get(name, -_LINE_SECONDS) >= _LINE_SECONDS
            if due:
                self._printed[name] = now
        if due and not self._console.is_terminal:
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def _clock(self) -> str:
        return clock(time.monotonic() - self._began)


def assets_text(missing: Sequence[Path], shown: int = 3) -> str:
    """Which files are missing, and where they belong."""
    more = f" and {len(missing) - shown} more" if len(missing) > shown else ""
    return f"assets are missing: {', '.join(map(str, missing[:shown]))}{more}"


def _state(environment: Environment | None) -> str:
    if environment is None:
        return "needs no environment of its own"
    if environment.stamp() is not None:
        return f"installed in {environment.path}"
    if not environment.unmet_here():
        return "this Python has what it needs"
    if missing := missing_packages(environment):
        return f"not installed; first {packages_fix(missing)}, then treadle simulators install {environment.name}"
    return f"not installed; treadle simulators install {environment.name}"
