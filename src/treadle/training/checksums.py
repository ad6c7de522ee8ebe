"""Checksums of a checkpoint: whether every file is there, and is as it was written."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import Field

from treadle.errors import CheckpointError
from treadle.files import sha256, to_json
from treadle.reading import path_inside, read_json
from treadle.tables import Table, read_table

CHECKSUMS = "checksums.json"
_THREADS = 4
"""Files that are read at the same time; Python's lock is free while a sum is computed."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileRecord(Table):
    """A file as it was written."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Checksums(Table):
    """The content of `checksums.json`."""

    files: dict[str, FileRecord]
    """By the path inside the checkpoint."""


def write_checksums(folder: Path, known: Mapping[str, str]) -> None:
    """Write `checksums.json` for all files in a folder; sums that are `known`, by name, are not computed again. Raises
    OSError.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths.pop(CHECKSUMS, None)
    sums = {**_sums({name: path for name, path in paths.items() if name not in known}), **known}
    records = {name: {"bytes": path.stat().st_size, "sha256": sums[name]} for name, path in paths.items()}
    (folder / CHECKSUMS).write_text(to_json({"files": records}), encoding="utf-8")


def check_whole(folder: Path) -> None:
    """Raises CheckpointError, which names the file, where a checkpoint is not as it was written. Reads all of it."""
    path = folder / CHECKSUMS
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    records = read_table(Checksums, read_json(path, CheckpointError), path).files
    files = {name: path_inside(folder, name, path, CheckpointError) for name in records}
    for name, file in files.items():
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if (found := file.stat().st_size) != records[name].bytes:
            raise CheckpointError(f"{file}: {found} bytes; {records[name].bytes} were written")
    try:
        sums = _sums(files)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    for name, found in sums.items():
        if found != records[name].sha256:
            raise CheckpointError(f"{files[name]}: its content is not what was written (SHA-256 {found[:8]}...)")


def _sums(files: Mapping[str, Path]) -> dict[str, str]:
    with ThreadPoolExecutor(_THREADS, "checksum") as threads:
        return dict(zip(files, threads.map(sha256, files.values()), strict=True))
