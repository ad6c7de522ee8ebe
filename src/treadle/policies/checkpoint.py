"""Checkpoint directories in the published layout: strict to read, atomic to write."""

import json
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from treadle.errors import CheckpointError, OutputError
from treadle.policies.image import PREPROCESSOR

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
    PREPROCESSOR,
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


def read_norm_stats(directory: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Statistics of all data sets, and the file: `dataset_statistics.json` replaces those in config.json."""
    path = directory / STATISTICS
    if path.is_file():
        return read_json(path), str(path)
    if "norm_stats" not in config:
        raise CheckpointError(f"{directory}: neither {STATISTICS} nor norm_stats in {CONFIG}")
    return config["norm_stats"], str(directory / CONFIG)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the shards that the index names.

    Raises CheckpointError for missing or corrupt files, and for an index that does not fit its shards.
    """
    index = directory / INDEX
    if not index.is_file():
        return read_tensors(directory / WEIGHTS)
    content = read_json(index)
    if not isinstance(content.get("weight_map"), dict):
        raise CheckpointError(f"{index}: no weight_map")
    placed: dict[str, str] = content["weight_map"]
    weights: dict[str, Tensor] = {}
    for name in sorted(set(placed.values())):
        shard = read_tensors(directory / name)
        expected = {key for key, file in placed.items() if file == name}
        if expected != shard.keys():
            raise CheckpointError(f"{directory / name}: {_difference(expected, shard.keys())} by {INDEX}")
        weights.update(shard)
    return weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file. Raises CheckpointError where it is missing or corrupt."""
    if not path.is_file():
        raise missing(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: corrupt or cut off ({path.stat().st_size} bytes): {error}") from error


def read_torch(path: Path) -> dict[str, Tensor]:
    """A published `.pt` state dict, with the `module.` that distributed training leaves in front of names taken off."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not readable as a torch state dict: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def assign(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Make `tensors` the parameters of `module`, which may be on the meta device.

    Raises CheckpointError naming the tensors that are missing, surplus or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if expected.keys() != tensors.keys():
        raise CheckpointError(f"{source}: {_difference(expected.keys(), tensors.keys())}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(tensors[name].shape)}, the config asks {list(shape)}"
            )
    module.load_state_dict(dict(tensors), assign=True)


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
) -> None:
    """Write `files` and safetensors files (`tensors`: file name to tensors) as `directory`, whole or not at all.

    A directory that is there is replaced if it holds a checkpoint (a config.json) or nothing. Weights above 5 GB are
    sharded. Raises OutputError where it holds something else, and on any failure to write.
    """
    if directory.exists() and not (directory.is_dir() and _replaceable(directory)):
        raise OutputError(f"{directory}: taken by something that is not a checkpoint; choose another folder")
    temporary: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        for name, state in tensors.items():
            _write_tensors(temporary, name, state)
        # safetensors and mkdtemp make what only the owner may read.
        for path in temporary.iterdir():
            path.chmod(0o644)
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


def _replaceable(directory: Path) -> bool:
    return (directory / CONFIG).is_file() or not any(directory.iterdir())


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


def _write_tensors(folder: Path, name: str, state: Mapping[str, Tensor]) -> None:
    shards = _shards(state)
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_file(shards[0], folder / name, metadata)
        return
    stem = name.removesuffix(".safetensors")
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata)
        placed.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in state.values())
    (folder / f"{name}.index.json").write_bytes(dump_json({"metadata": {"total_size": total}, "weight_map": placed}))


def _shards(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    return shards


def _difference(expected: Iterable[str], found: Iterable[str]) -> str:
    lacking, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [
        f"{len(names)} {what}: {_some(names)}" for names, what in ((lacking, "missing"), (surplus, "surplus")) if names
    ]
    return "tensors " + "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
