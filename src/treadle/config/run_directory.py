"""The folder of a run: one configuration each, so that a run is resumed and never overwritten."""

import fcntl
import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from treadle.config.describe import describe, toml_text
from treadle.config.recipes import CONFIG
from treadle.config.schema import RunConfig
from treadle.errors import ConfigError, OutputError
from treadle.files import cannot_write, write_atomically
from treadle.reading import check_path, read_json

LOCK = ".lock"
PLACE = (
    "output",
    "placement",
    "runtime",
    "device",
    "torch_threads",
    "collection",
    "simulator.threads",
    "simulator.python",
)
"""Keys and sections that say where a run is, not what it is; a resumed run may have others."""
MANNER = (
    *("save_every", "keep_checkpoints", "save_in_background", "wandb"),
    *("evaluation.every", "evaluation.slots", "evaluation.videos"),
    *("policy.gradient_checkpointing", "policy.compile", "algorithm.micro_batch", "algorithm.log_prob_alarm"),
    *("imitation.cache_gb", "imitation.save_every"),
)
"""Keys that change how a run goes on and what it costs, not what came of it so far, but for rounding."""
LENGTH = "iterations"
"""The key by which a run is extended, where nothing that was done depends on its value."""
DECAY = "optimizer.final_share"
"""The key that lets rates depend on the length, unless it is 1."""
FOLDERS = ("checkpoints", "evaluation", "videos", "tensorboard")
"""What a run writes into, looked at before hours of work."""
PREPARED = {
    *(CONFIG, LOCK, "machine.json", "plan.json", "preflight.json", "run.log"),
    *("evaluation", "videos", "tensorboard", "wandb"),
}
"""What a folder may hold before its first iteration; then it is nobody's."""


@contextmanager
def hold_run_directory(config: RunConfig, say: Callable[[str], None]) -> Generator[Path, None, None]:
    """`output/name`, kept to this process while the block lasts; the system gives it back however a process ends. It is
    made where it is not there, and removed again where nothing was put into it. `say` is told of an owner that was
    killed.

    Raises OutputError where the folder cannot be written, where another process has it, which is named, or where it
    holds something else than this run. What may differ for the same run is in `PLACE`, `MANNER` and `LENGTH`.
    """
    if config.name in ("", ".", "..") or Path(config.name).name != config.name:
        raise ConfigError(
            f"name: found {config.name!r}, allowed is the name of one folder, made inside {config.output}"
        )
    directory = check_path(str(config.output / config.name), "output and name", OutputError)
    made: list[Path] = []
    try:
        _make(directory, made)
        with lock_directory(directory, say):
            _check_same(directory, config)
            yield directory
    finally:
        for folder in reversed(made):
            # One that is not empty stays.
            with suppress(OSError):
                folder.rmdir()


def claim_run_directory(directory: Path, config: RunConfig) -> None:
    """Write the run's `config.json`. Raises OutputError."""
    path = directory / CONFIG
    for name in FOLDERS:
        folder = directory / name
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise OutputError(
                f"cannot write '{folder}': it is not a folder that can be written; remove it, or choose another run "
                "with name=..."
            )
    if path.is_file() and _differences(path, config) and _is_nobodys(directory):
        # Measured with other settings.
        (directory / "evaluation" / "base.json").unlink(missing_ok=True)
    # Written anew, for what may differ; it also shows, before hours of work, that the folder is writable.
    write_atomically(path, config.model_dump_json(indent=2) + "\n")


def _make(directory: Path, made: list[Path]) -> None:
    """Make a folder, and those that it lies in; `made` takes in which. Raises OutputError."""
    try:
        for folder in (*reversed(directory.parents), directory):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write the run folder '{directory}': {error.strerror}; choose another with output=..."
        ) from error


@contextmanager
def lock_directory(
    directory: Path, say: Callable[[str], None], change: str = "name=..."
) -> Generator[None, None, None]:
    """Keep a folder to this process while the block lasts; `say` is told of an owner that was killed.

    Raises OutputError, which names the owner, where another process has it; `change` is what chooses another folder.
    """
    path = directory / LOCK
    with ExitStack() as opened:
        while True:
            try:
                file = opened.enter_context(path.open("a+", encoding="utf-8"))
            except OSError as error:
                raise cannot_write(path, error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise OutputError(
                    f"'{directory}' is in use by {file.read().strip() or 'another process'}; wait for its end, or "
                    f"choose another folder with {change}"
                ) from error
            # An owner that ended in between has removed the file that is locked here.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        file.seek(0)
        if before := file.read().strip():
            say(f"'{directory}' was in use by {before}, which was killed; going on from what it has saved")
        file.truncate(0)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        print(f"process {os.getpid()} on {socket.gethostname()}, since {started}", file=file, flush=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _check_same(directory: Path, config: RunConfig) -> None:
    """Raises OutputError where a folder holds something else than the run of a configuration."""
    path = directory / CONFIG
    if not path.exists():
        if any(entry.name != LOCK for entry in directory.iterdir()):
            raise OutputError(f"'{directory}' holds other files and no {CONFIG}; choose another with name=...")
    elif (differences := _differences(path, config)) and not _is_nobodys(directory):
        raise OutputError(
            f"'{directory}' already holds another run ({'; '.join(differences)}); choose another with name=..., "
            "or resume that run by its own command"
        )


def _is_nobodys(directory: Path) -> bool:
    """Whether no iteration was done in a folder."""
    return all(
        entry.name in PREPARED or (not any(entry.iterdir()) if entry.is_dir() else not entry.stat().st_size)
        for entry in directory.iterdir()
    )


def _differences(path: Path, config: RunConfig, shown: int = 3) -> list[str]:
    content = read_json(path, OutputError)
    if not isinstance(content, dict):
        raise OutputError(f"'{path}' is not a configuration; choose another folder with name=...")
    there = flatten(cast("dict[str, Any]", content))
    here = flatten(config.model_dump(mode="json"))
    order = [key.name for key in describe(type(config))]
    names = sorted(
        (name for name in there.keys() | here.keys() if not _may_differ(name, here)),
        key=lambda n: (order.index(n) if n in order else len(order), n),
    )
    found = [
        f"{name} is {_shown(there, name)} there and {_shown(here, name)} here"
        + (f", and with {DECAY} {here[DECAY]} its learning rates depend on it" if name == LENGTH else "")
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]
    return found[:shown] + ([f"{len(found) - shown} more"] if len(found) > shown else [])


def _may_differ(name: str, here: dict[str, Any]) -> bool:
    """Whether a run that has begun may go on with another value."""
    if name == LENGTH:
        return here.get(DECAY, 1.0) == 1.0
    return any(name == key or name.startswith(f"{key}.") for key in (*PLACE, *MANNER))


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
