"""Results of commands: numbers for people, a JSON file for programs."""

import os
from pathlib import Path
from typing import Any

from treadle.errors import OutputError
from treadle.files import to_json, write_atomically


def check_destination(path: Path | None) -> None:
    """Say before the work, not after it, that a file cannot be written. Raises OutputError."""
    if path is None:
        return
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder; name a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write '{path}': '{folder}' is not a folder that can be written; name another file")


def write_result(path: Path | None, result: Any) -> None:
    """Write a result as JSON, whole or not at all, where a file was asked for. Raises OutputError."""
    if path is not None:
        write_atomically(path, to_json(result) + "\n")


def format_bytes(count: int) -> str:
    """Bytes for people, with three digits."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def format_count(parameters: int) -> str:
    """A count for people, with three digits."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)
