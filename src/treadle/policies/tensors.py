"""Files of tensors: safetensors and torch state dicts, what may be in them, and how wrappers name what they hold."""

import re
import zipfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.reading import library

TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types that weights may have, by their names in safetensors files."""
_NAMES = {dtype: name for name, dtype in TYPES.items()}
DISTRIBUTED = "module."
"""What distributed training leaves in front of every name."""
WRAPPERS = (DISTRIBUTED, "_orig_mod.", "base_model.model.")
"""What wrappers leave there: distributed training, `torch.compile`, peft."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file."""

    file: str
    """The file's path in its directory."""
    name: str
    """Its name there, with what wrappers left in front."""
    shape: tuple[int, ...]
    dtype: str
    """"BF16", ..."""

    @property
    def numbers(self) -> int:
        """How many there are in it."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many it has."""
        bits = re.search(r"\d+", self.dtype)
        return self.numbers * (int(bits[0]) if bits else 8) // 8


def read_headers(path: Path, name: str | None = None) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header. `name` is the file's in its checkpoint, by default the last
    part of the path. Raises CheckpointError where it is missing or corrupt.
    """
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {
            key: Stored(name or path.name, key, tuple(part.get_shape()), part.get_dtype())
            for key, part in slices.items()
        }


def read_tensors(
    path: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    names: Container[str] | None = None,
) -> dict[str, Tensor]:
    """Tensors of one safetensors file, all or those of `names`; `dtype` None keeps their types.

    Raises CheckpointError where it is missing or corrupt.
    """
    with _opened(path) as file:
        wanted = [name for name in file.keys() if names is None or name in names]  # noqa: SIM118
        return {name: file.get_tensor(name).to(device, dtype) for name in wanted}


def stream(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, one after another. Raises as `read_tensors`."""
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name)


def read_torch(path: Path) -> dict[str, Tensor]:
    """A `.pt` state dict; nothing but tensors is unpickled. Names are as stored.

    Raises CheckpointError where it is corrupt or holds anything else.
    """
    state = load_plain(path, mmap=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict of tensors alone")
    size = path.stat().st_size
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!s:.80}: found a {type(value).__name__}; allowed: tensors alone")
        # A tensor that repeats a few numbers would become huge as soon as it is copied.
        if value.layout != torch.strided or value.numel() * value.element_size() > size:
            raise CheckpointError(f"{path}: {name}: {list(value.shape)} numbers are not in a file of {size} bytes")
    return state


def load_plain(path: Path, *, mmap: bool = False, advice: str = "") -> Any:
    """What `torch.save` wrote to a file; tensors and plain data alone are unpickled. `advice` ends an error.

    Raises CheckpointError where it is corrupt or holds anything else.
    """
    with library(path, CheckpointError, "a file of tensors", advice):
        # A file of torch's format of old would be read before its content is checked.
        if not path.is_file() or not zipfile.is_zipfile(path):
            reason = f"cut short or of another kind, {path.stat().st_size} bytes"
            raise CheckpointError(f"{path}: not readable as a file of tensors: {reason}{advice}")
        with zipfile.ZipFile(path) as archive:
            packed = sum(entry.file_size for entry in archive.infolist())
        if packed > path.stat().st_size:
            raise CheckpointError(f"{path}: compressed; torch.save writes files that are not{advice}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def check_types(path: Path, tensors: Mapping[str, Stored | Tensor]) -> None:
    """Raises CheckpointError for tensors that are no plain numbers: quantised weights are codes that need scales."""
    for name, tensor in tensors.items():
        dtype = tensor.dtype if isinstance(tensor, Stored) else _NAMES.get(tensor.dtype, str(tensor.dtype))
        if dtype not in TYPES:
            raise CheckpointError(
                f"{path}: {name} has type {dtype}; allowed are {', '.join(TYPES)}. Quantised weights cannot be read: "
                "take the checkpoint that they were made from, or save a dequantised copy"
            )


def wrapped(names: Iterable[str]) -> str:
    """What wrappers left in front of all names, such as `module._orig_mod.`; empty where they left nothing."""
    rest, found = list(names), ""
    while rest and (shared := next((w for w in WRAPPERS if all(name.startswith(w) for name in rest)), "")):
        found += shared
        rest = [name.removeprefix(shared) for name in rest]
    return found


def main_type(entries: Iterable[Stored]) -> str:
    """The type that most numbers have."""
    numbers: Counter[str] = Counter()
    for entry in entries:
        numbers[entry.dtype] += entry.numbers
    return numbers.most_common(1)[0][0]


def missing(path: Path) -> CheckpointError:
    """The error for a file that is not there: names what is."""
    folder = path.parent
    if not folder.is_dir():
        return CheckpointError(f"{folder}: no such directory")
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    return CheckpointError(f"{path}: missing; the directory has: {there}")


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise missing(path)
    with library(f"{path} ({path.stat().st_size} bytes)", CheckpointError, "safetensors"):
        return safe_open(path, framework="pt")
