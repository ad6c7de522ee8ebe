"""The folder of a run: one configuration each, so that a run is resumed and never overwritten."""

import fcntl
import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from treadle.config.describe import describe, toml_text
from treadle.config.schema import RunConfig
from treadle.errors import ConfigError, OutputError
from treadle.files import cannot_write, write_atomically
from treadle.reading import check_path, read_json

CONFIG = "config.json"
LOCK = ".lock"
PLACE = ("output", "placement", "runtime")
"""Keys and sections that say where a run is, not what it is; a resumed run may have others."""


def create_run_directory(config: RunConfig) -> Path:
    """`output/name`, holding the run's `config.json`; an existing folder is taken again for the same configuration.

    Raises OutputError where it cannot be written or holds something else. Where it lies and on which devices it runs is
    no difference.
    """
    if config.name in ("", ".", "..") or Path(config.name).name != config.name:
        raise ConfigError(
            f"name: found {config.name!r}, allowed is the name of one folder, made inside {config.output}"
        )
    directory = check_path(str(config.output / config.name), "output and name", OutputError)
    path = directory / CONFIG
    try:
        directory.mkdir(parents=True, exist_ok=True)
        taken = any(path.name != LOCK for path in directory.iterdir())
        existing = path.exists()
    except OSError as error:
        raise OutputError(
            f"cannot write the run folder '{directory}': {error.strerror}; choose another with output=..."
        ) from error
    if not existing:
        if taken:
            raise OutputError(f"'{directory}' holds other files and no {CONFIG}; choose another with name=...")
        write_atomically(path, config.model_dump_json(indent=2) + "\n")
        return directory
    if differences := _differences(path, config):
        raise OutputError(
            f"'{directory}' already holds another run ({'; '.join(differences)}); choose another with name=..., "
            "or resume that run by its own command"
        )
    # Written anew, for the placement may differ; it also shows, before hours of work, that the folder is writable.
    write_atomically(path, config.model_dump_json(indent=2) + "\n")
    return directory


@contextmanager
def lock_run_directory(directory: Path, change: str = "name=...") -> Generator[None, None, None]:
    """Keep a folder to this process while the block lasts. The system gives the lock back however a process ends.

    Raises OutputError, which names the owner, where another process has it; `change` is what chooses another folder.
    """
    path = directory / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise OutputError(
                f"'{directory}' is in use by {file.read().strip() or 'another process'}; wait for its end, or choose "
                f"another folder with {change}"
            ) from error
        file.truncate(0)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        print(f"process {os.getpid()} on {socket.gethostname()}, since {started}", file=file, flush=True)
        yield
        file.truncate(0)


def _differences(path: Path, config: RunConfig, shown: int = 3) -> list[str]:
    content = read_json(path, OutputError)
    if not isinstance(content, dict):
        raise OutputError(f"'{path}' is not a configuration; choose another folder with name=...")
    there = flatten(cast("dict[str, Any]", content))
    here = flatten(config.model_dump(mode="json"))
    order = [key.name for key in describe(type(config))]
    names = sorted(
        (name for name in there.keys() | here.keys() if name.partition(".")[0] not in PLACE),
        key=lambda n: (order.index(n) if n in order else len(order), n),
    )
    found = [
        f"{name} is {_shown(there, name)} there and {_shown(here, name)} here"
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]
    return found[:shown] + ([f"{len(found) - shown} more"] if len(found) > shown else [])


def _shown(values: dict[str, Any], name: str) -> str:
    return toml_text(values[name]) if name in values else "absent"


def differing_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys of two flat tables whose values differ. An empty table differs by the keys that the other has in it."""
    keys = list(dict.fromkeys([*before, *after]))
    inner = {key.rpartition(".")[0] for key in keys}
    return [key for key in keys if key not in inner and before.get(key) != after.get(key)]


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a table and of the tables in it, by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}  # pyright: ignore[reportUnknownArgumentType]
    return flat
