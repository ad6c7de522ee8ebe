"""The Python environment of a simulator's own, as the `environment.toml` beside its code describes it."""

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from treadle.environments.interpreter import Interpreter
from treadle.errors import SimulatorError, did_you_mean
from treadle.reading import read_json, read_toml, shown

STAMP = "treadle.json"
"""Written into an environment once it is whole."""
_KEYS = ("summary", "python", "requirements", "no_deps", "apt", "variables")


def environments_folder() -> Path:
    """Where environments live: `$TREADLE_HOME`, else `$XDG_CACHE_HOME/treadle`, else `~/.cache/treadle`."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TREADLE_HOME") or Path(cache) / "treadle") / "environments"


@dataclass(frozen=True)
class Environment:
    """What an `environment.toml` says. Everything that its packages follow from is in `digest`."""

    name: str
    """Of the simulator."""
    package: str
    """The Python package whose folder holds the file."""
    file: Path
    summary: str
    python: tuple[str, ...]
    """Versions of Python, as in 3.11, that the pins were tested with."""
    requirements: tuple[str, ...]
    """Pinned, in pip's syntax. The first is installed on its own before the others."""
    no_deps: bool = False
    """`requirements` are all there is; what they themselves ask for is not installed."""
    apt: tuple[str, ...] = ()
    """Debian packages that must be there."""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables of its workers."""

    @cached_property
    def digest(self) -> str:
        """Of the pins: another one is another environment."""
        pins = json.dumps([self.python, self.requirements, self.no_deps])
        return hashlib.sha256(pins.encode()).hexdigest()[:12]

    @property
    def path(self) -> Path:
        """Its folder, whether it is there or not."""
        return environments_folder() / f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', self.name)}-{self.digest}"

    @property
    def executable(self) -> Path:
        """Its interpreter, whether it is there or not."""
        return self.path / "bin" / "python"

    @property
    def setup_file(self) -> Path:
        """Where a simulator prepares more than packages, and knows its assets; there may be none."""
        return self.file.with_name("setup.py")

    def setup(self) -> ModuleType | None:
        """The module of `setup_file`."""
        return import_module(f"{self.package}.setup") if self.setup_file.exists() else None

    def setup_digest(self) -> str:
        """Of what prepares the environment, which is done again where it changed."""
        return hashlib.sha256(self.setup_file.read_bytes()).hexdigest() if self.setup_file.exists() else ""

    def stamp(self) -> dict[str, Any] | None:
        """What its installation left: `variables` and `setup`; None where it is missing or only half made."""
        try:
            found = read_json(self.path / STAMP, SimulatorError) if self.executable.exists() else None
        except SimulatorError:
            return None
        return found if isinstance(found, dict) else None

    def missing_assets(self) -> list[Path]:
        """Files that its simulator needs and that are not there, as far as it can tell."""
        look = getattr(self.setup(), "missing_assets", None)
        return [] if look is None else [Path(path) for path in look()]

    def unmet_here(self) -> list[str]:
        """Requirements that this interpreter does not have at their versions."""
        return [requirement for requirement in self.requirements if not _is_met(requirement)]

    def interpreter(self) -> Interpreter:
        """What its workers run in: its own environment where that is installed, else this interpreter where it has
        all that is required. Raises SimulatorError where neither is the case, and says how to install it.
        """
        if (stamp := self.stamp()) is not None:
            return Interpreter(str(self.executable), dict(self.variables) | stamp["variables"])
        if self.unmet_here():
            raise SimulatorError(
                f"simulator {self.name!r} has no environment of its own yet, and the Python here "
                f"lacks {self.unmet_here()[0]}; install it with: treadle simulators install {self.name}"
            )
        return Interpreter(sys.executable, dict(self.variables))


def find_environment(name: str, target: str) -> Environment | None:
    """The environment of simulator `name` whose class is `target`, `package.module:Class`; None where it has none.

    Raises SimulatorError for a file that cannot be used.
    """
    module = target.partition(":")[0]
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "environment.toml"
    return read_environment(name, module, file) if file.exists() else None


def read_environment(name: str, package: str, file: Path) -> Environment:
    """Read an `environment.toml`. Raises SimulatorError naming the file and the key."""
    try:
        found = read_toml(file, SimulatorError)
    except SimulatorError as error:
        raise SimulatorError(f"{error}; mend the file") from error
    for key in found:
        if key not in _KEYS:
            raise SimulatorError(f"{file}: unknown key {key!r}{did_you_mean(key, _KEYS)}; keys: {', '.join(_KEYS)}")
    variables = found.get("variables", {})
    kinds = {
        "a list of strings": {key: found.get(key, []) for key in ("python", "requirements", "apt")},
        "a string": {"summary": found.get("summary", "")} | {f"variables.{k}": v for k, v in variables.items()},
        "true or false": {"no_deps": found.get("no_deps", False)},
    }
    for allowed, values in kinds.items():
        for key, value in values.items():
            if not _is(allowed, value):
                raise SimulatorError(f"{file}: {key}: found {shown(value)}, allowed is {allowed}")
    for key in ("python", "requirements"):
        if not found.get(key):
            raise SimulatorError(f"{file}: {key} is missing; allowed is a list with at least one entry")
    lists = {key: tuple(found.get(key, ())) for key in ("python", "requirements", "apt")}
    return Environment(
        name,
        package,
        file,
        found.get("summary", ""),
        no_deps=found.get("no_deps", False),
        variables=tuple(sorted(variables.items())),
        **lists,
    )


def _is(kind: str, value: Any) -> bool:
    if kind == "a list of strings":
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return isinstance(value, str if kind == "a string" else bool)


def _is_met(requirement: str) -> bool:
    """Whether the very version of `name==version` is installed; a requirement of another form counts as unmet."""
    name, _, pinned = requirement.partition(";")[0].partition("==")
    try:
        return bool(pinned) and version(name.partition("[")[0].strip()).partition("+")[0] == pinned.strip()
    except PackageNotFoundError:
        return False
