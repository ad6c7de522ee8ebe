"""Checkpoint directories in the published layout: strict and lean to read, atomic to write.

Weights are mapped from their files, not read: a tensor that keeps its type and stays on the CPU is the file itself
(private pages, copied where training writes), and any other is converted one by one.
"""

import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from treadle.errors import CheckpointError, OutputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
STATISTICS = "dataset_statistics.json"
CONFIG = "config.json"
CARRIED = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "preprocessor_config.json",
)
"""Files that a policy does not change and writes back as it found them; `*.py` of a checkpoint with remote code too."""

SHARD_BYTES = 5 * 1024**3


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where it is missing or anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing(path) from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def read_carried(directory: Path) -> dict[str, bytes]:
    """The files to write back unchanged, by name."""
    names = [name for name in CARRIED if (directory / name).is_file()]
    names += sorted(path.name for path in directory.glob("*.py"))
    return {name: (directory / name).read_bytes() for name in names}


def named_policy(config: Mapping[str, Any], source: Path) -> str | None:
    """The policy that a config.json names; None for published files. Raises CheckpointError."""
    facts = config.get("treadle", {})
    if not isinstance(facts, dict) or not isinstance(facts.get("policy"), str | None):
        raise CheckpointError(
            f"{source}: treadle: found {json.dumps(facts)}; allowed: an object whose policy is a name"
        )
    return facts.get("policy")


def read_norm_stats(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Statistics of all data sets, and the file: `dataset_statistics.json` replaces those in config.json."""
    path = directory / STATISTICS
    if path.is_file():
        return read_json(path), str(path)
    if config.get("norm_stats") is None:
        raise CheckpointError(f"{directory}: neither {STATISTICS} nor norm_stats in {CONFIG}")
    return config["norm_stats"], str(directory / CONFIG)


def read_layout(directory: Path) -> dict[str, str]:
    """The file of each tensor of the main weights: one file, or the shards that the index names.

    Raises CheckpointError for missing or corrupt files, and for an index that does not fit its shards.
    """
    index = directory / INDEX
    if not index.is_file():
        return dict.fromkeys(tensor_shapes(directory / WEIGHTS), WEIGHTS)
    content = read_json(index)
    if not isinstance(content.get("weight_map"), dict):
        raise CheckpointError(f"{index}: no weight_map")
    placed: dict[str, str] = content["weight_map"]
    for name in sorted(set(placed.values())):
        found = tensor_shapes(directory / name)
        expected = {key for key, file in placed.items() if file == name}
        if expected != found.keys():
            raise CheckpointError(f"{directory / name}: {_difference(expected, found)} by {INDEX}")
    return placed


def read_weights(
    directory: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """All tensors of the main weights, on `device`; `dtype` None keeps the stored types. Raises as `read_layout`."""
    weights: dict[str, Tensor] = {}
    for name in sorted(set(read_layout(directory).values())):
        weights.update(read_tensors(directory / name, dtype, device))
    return weights


def read_tensors(path: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of one safetensors file. Raises CheckpointError where it is missing or corrupt."""
    with _opened(path) as file:
        return {name: file.get_tensor(name).to(device, dtype) for name in file.keys()}  # noqa: SIM118


def tensor_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type ("BF16", ...) of each tensor of a safetensors file, from its header alone."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise missing(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: corrupt or cut off ({path.stat().st_size} bytes): {error}") from error


def read_torch(path: Path) -> dict[str, Tensor]:
    """A published `.pt` state dict; nothing but tensors is unpickled. Names are as stored: distributed training leaves
    `module.` in front of them.
    """
    try:
        # A file of torch's format of old would be read before its content is checked.
        if not zipfile.is_zipfile(path):
            raise CheckpointError(f"{path}: not readable as a torch state dict: not a zip file")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not readable as a torch state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict of tensors alone")
    return state


def assign(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Make `tensors` the parameters of `module`, which may be on the meta device.

    Raises CheckpointError naming the tensors that are missing, surplus or of another shape.
    """
    check_shapes(shapes(module.state_dict()), shapes(tensors), source)
    module.load_state_dict(dict(tensors), assign=True)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raises CheckpointError naming the tensors that are missing, surplus or of another than the expected shape."""
    if expected.keys() != found.keys():
        raise CheckpointError(f"{source}: {_difference(expected.keys(), found.keys())}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{source}: {name} has shape {list(found[name])}, the config asks {list(shape)}")


def missing(path: Path) -> CheckpointError:
    """The error for a file that is not there: names what is."""
    folder = path.parent
    if not folder.is_dir():
        return CheckpointError(f"{folder}: no such directory")
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
    return CheckpointError(f"{path}: missing; the directory has: {there}")


def write_directory(
    directory: Path,
    files: Mapping[str, bytes],
    tensors: Mapping[str, Mapping[str, Tensor]],
    layout: Mapping[str, str] | None = None,
    export: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Write `files` and files of `tensors` (file name to tensors) as `directory`, whole or not at all.

    A name that ends with `.pt` is written by `torch.save`, any other as safetensors, in shards of 5 GB. `layout` (name
    to file) gives the main weights the shards they were read from, where it names the same tensors. `export` makes the
    tensor that is written of a name and a tensor, one shard at a time. A directory that is there is replaced if it
    holds a checkpoint (a config.json) or nothing. Raises OutputError where it holds something else, and on any failure
    to write.
    """
    taken = directory.exists() and not (directory / CONFIG).is_file()
    if taken and not (directory.is_dir() and not any(directory.iterdir())):
        raise OutputError(f"{directory}: taken by something that is not a checkpoint; choose another folder")
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        for name, content in files.items():
            _below(temporary, name).write_bytes(content)
        for name, state in tensors.items():
            file = _below(temporary, name)
            if name.endswith(".pt"):
                content = _exported(state, export)
                try:
                    torch.save(content, file)
                except RuntimeError as error:
                    # How torch's zip writer reports a full disk.
                    raise OSError(str(error)) from error
            else:
                kept = layout if layout and name == WEIGHTS and layout.keys() == state.keys() else None
                _write_tensors(file, state, kept, export)
        # safetensors and mkdtemp make what only the owner may read.
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        temporary.chmod(0o755)
        _replace(temporary, directory)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{directory}: cannot write the checkpoint: {error}; nothing was changed") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def dump_json(content: object) -> bytes:
    """JSON as checkpoints have it: indented, sorted."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _replace(temporary: Path, directory: Path) -> None:
    if not directory.exists():
        temporary.rename(directory)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    directory.replace(old)
    try:
        temporary.rename(directory)
    except OSError:
        old.replace(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _below(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path


def _write_tensors(
    file: Path,
    state: Mapping[str, Tensor],
    layout: Mapping[str, str] | None,
    export: Callable[[str, Tensor], Tensor] | None,
) -> None:
    placed = _placed(state, file.name) if layout is None else layout
    metadata = {"format": "pt"}
    for name in sorted(set(placed.values())):
        shard = {key: tensor for key, tensor in state.items() if placed[key] == name}
        save_file(_exported(shard, export), file.with_name(name), metadata)
    if set(placed.values()) != {file.name}:
        total = sum(tensor.nbytes for tensor in state.values())
        content = {"metadata": {"total_size": total}, "weight_map": dict(placed)}
        file.with_name(f"{file.name}.index.json").write_bytes(dump_json(content))


def _exported(state: Mapping[str, Tensor], export: Callable[[str, Tensor], Tensor] | None) -> dict[str, Tensor]:
    exported = {name: export(name, tensor) if export else tensor for name, tensor in state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in exported.items()}


def _placed(state: Mapping[str, Tensor], name: str) -> dict[str, str]:
    """The file of each tensor: `name`, or its shards where the whole is too large for one."""
    number, size = 1, 0
    numbers: dict[str, int] = {}
    for key, tensor in state.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            number, size = number + 1, 0
        size += tensor.nbytes
        numbers[key] = number
    if number == 1:
        return dict.fromkeys(state, name)
    stem = name.removesuffix(".safetensors")
    return {key: f"{stem}-{place:05d}-of-{number:05d}.safetensors" for key, place in numbers.items()}


def _difference(expected: Iterable[str], found: Iterable[str]) -> str:
    parts: list[str] = []
    for what, names in (("missing", set(expected) - set(found)), ("surplus", set(found) - set(expected))):
        if names:
            some = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
            parts.append(f"{len(names)} {what}: {some}")
    return "tensors " + "; ".join(parts)
