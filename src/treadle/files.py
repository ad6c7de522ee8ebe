"""Files that are whole or absent: a reader, or a run that is cut short, never meets half of one."""

import ctypes
import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from treadle.errors import OutputError

_HERE, _EXCHANGE = -100, 2
"""Of renameat2(2): paths as they are, and each takes the other's place."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside `path`, then rename. Raises OutputError where the folder cannot be written or the disk is full; then
    `path` is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file of a name that nobody knows: a link that stands in its place is never followed.
        number, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
        temporary = Path(name)
        try:
            os.close(number)
            temporary.write_bytes(data)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def replace_directory(new: Path, directory: Path) -> None:
    """Put the folder `new` in the place of `directory`, in one step of the system where it has one (Linux): a process
    that is killed leaves the old or the new, whole. `new` is gone afterwards. Raises OSError.
    """
    if not directory.exists():
        new.rename(directory)
        return
    try:
        swap: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        swap = None
    if swap is None or swap(_HERE, os.fsencode(new), _HERE, os.fsencode(directory), _EXCHANGE):
        old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        directory.replace(old)
        try:
            new.rename(directory)
        except OSError:
            old.replace(directory)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        shutil.rmtree(new, ignore_errors=True)


def sha256(path: Path) -> str:
    """The checksum of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: Exception) -> OutputError:
    """The error that says which file could not be written, and why."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OutputError(f"cannot write {path}: {reason}; free some space or choose another output folder")


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON as the standard has it: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
