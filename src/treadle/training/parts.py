"""Files of shards: each rank's rows of tensors in a safetensors file of its own, from which any rows can be read."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.reading import library, parse_json
from treadle.training.shards import Shard

PLACEHOLDER = "treadle.shard"
"""The key of a dictionary that stands for a tensor in files of shards; its value is the tensor's name there."""
_RECORDS = "shards"
"""The key of a file's metadata that has the first row and the whole shape of each tensor."""


@dataclass(slots=True)
class StoredTensor:
    """A whole tensor that lies in the files of several ranks."""

    shape: tuple[int, ...]
    files: list[tuple[int, int, Any, str]] = field(default_factory=list[tuple[int, int, Any, str]])
    """First row, row after the last, opened file and name in it."""

    def take(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), read from their files now."""
        parts: list[Tensor] = []
        for first, last, file, name in self.files:
            rows = file.get_slice(name)
            overlap = range(max(start, first), min(stop, last))
            # An empty overlap gives the type of a tensor of no rows.
            parts.append(rows[overlap.start - first : overlap.stop - first] if overlap else rows[0:0])
        return torch.cat(parts)


def split_state(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Shard]]:
    """A state with placeholders for its shards, and the shards by their path in it."""
    shards: dict[str, Shard] = {}

    def replace(path: str, value: Any) -> Any:
        if isinstance(value, Shard):
            shards[path] = value
            return {PLACEHOLDER: path}
        return value

    return _walk(state, replace), shards


def join_state(state: dict[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """The inverse of `split_state`, with tensors that are still in their files. Raises CheckpointError for a tensor of
    no file.
    """

    def replace(_: str, value: Any) -> Any:
        if not (isinstance(value, dict) and PLACEHOLDER in value):
            return value
        name = value[PLACEHOLDER]
        if name not in stored:
            raise CheckpointError(
                f"{name} is in no file of shards; remove the checkpoint to resume from the one before"
            )
        return stored[name]

    return _walk(state, replace)


def map_tensors(state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """A state with each of its tensors changed."""
    return _walk(state, lambda _, value: change(value) if isinstance(value, Tensor) else value)


def part_path(folder: Path, rank: int, count: int) -> Path:
    """The file of a rank."""
    return folder / f"trainer-{rank + 1:05d}-of-{count:05d}.safetensors"


def write_part(path: Path, shards: Mapping[str, Shard]) -> None:
    """Write a rank's shards. The file has its name only when it is whole. Raises OSError."""
    records = {name: (shard.start, shard.shape) for name, shard in shards.items()}
    content = {name: shard.rows.cpu().contiguous() for name, shard in shards.items()}
    temporary = path.with_suffix(".unfinished")
    try:
        save_file(content, temporary, {_RECORDS: json.dumps(records)})
    except SafetensorError as error:
        # How safetensors reports a full disk.
        raise OSError(str(error)) from error
    temporary.replace(path)


def read_parts(folder: Path, count: int) -> dict[str, StoredTensor]:
    """The tensors in the files of `count` ranks, by name; no rows are read yet.

    Raises:
        CheckpointError: A file is missing or corrupt, or rows of a tensor are in none.
    """
    found: dict[str, StoredTensor] = {}
    for rank in range(count):
        path = part_path(folder, rank, count)
        for name, start, shape, stop, file in _entries(path):
            tensor = found.setdefault(name, StoredTensor(shape))
            place = tensor.files[-1][1] if tensor.files else 0
            if (start, shape) != (place, tensor.shape):
                raise _unusable(path, f"{name} begins with row {start} of {list(shape)}, not {place}")
            tensor.files.append((start, stop, file, name))
    for name, tensor in found.items():
        if tensor.files[-1][1] != tensor.shape[0]:
            raise _unusable(folder, f"{name} ends with row {tensor.files[-1][1]} of {list(tensor.shape)}")
    return found


def _entries(path: Path) -> Iterator[tuple[str, int, tuple[int, ...], int, Any]]:
    """Name, first row, whole shape, row after the last, and opened file of each tensor."""
    with library(path, CheckpointError, "a part of a trainer's state", _advice(path.parent)):
        file: Any = safe_open(path, framework="pt")
        records = parse_json(file.metadata()[_RECORDS], path, CheckpointError)
        for name in file.keys():  # noqa: SIM118
            start, shape = records[name]
            yield name, start, tuple(shape), start + file.get_slice(name).get_shape()[0], file


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({reason}){_advice(path if path.is_dir() else path.parent)}")


def _advice(folder: Path) -> str:
    return f"; remove {folder} to resume from the one before"


def _walk(value: Any, replace: Callable[[str, Any], Any], path: str = "") -> Any:
    """A copy of nested dictionaries, lists and tuples, whose parts are replaced."""
    changed = replace(path, value)
    if changed is not value:
        return changed
    before = f"{path}." if path else ""
    if isinstance(value, dict):
        return {key: _walk(each, replace, f"{before}{key}") for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_walk(each, replace, f"{before}{place}") for place, each in enumerate(value))
    return value
