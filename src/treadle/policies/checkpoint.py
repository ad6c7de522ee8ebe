"""Checkpoint directories in the published layout: strict and lean to read, atomic to write.

Weights are mapped from their files, not read: a tensor that keeps its type and stays on the CPU is the file itself
(private pages, copied where training writes), and any other is converted one by one.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from treadle import reading
from treadle.errors import CheckpointError, OutputError
from treadle.files import replace_directory
from treadle.policies.tensors import Stored, missing, read_headers, read_tensors, wrapped

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model*.bin*"
"""Weights in the format of old, which may run code when they are read."""
MAIN = (WEIGHTS, INDEX, PICKLED)
"""Files that hold main weights, or say where they are."""
COMPUTED = ("rotary_emb.inv_freq",)
"""Ends of names of buffers that are computed from the config."""
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
    if not path.exists():
        raise missing(path)
    content = reading.read_json(path, CheckpointError)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def read_carried(directory: Path) -> dict[str, bytes]:
    """The files to write back unchanged, by name."""
    names = [name for name in CARRIED if (directory / name).is_file()]
    names += sorted(path.name for path in directory.glob("*.py"))
    return {name: reading.read_bytes(directory / name, CheckpointError) for name in names}


def named_policy(config: Mapping[str, Any], source: Path) -> str | None:
    """The policy that a config.json names; None for published files. Raises CheckpointError."""
    facts = config.get("treadle", {})
    if not isinstance(facts, dict) or not isinstance(facts.get("policy"), str | None):
        raise CheckpointError(
            f"{source}: treadle: found {reading.shown(facts)}; allowed: an object whose policy is a name"
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


def read_layout(directory: Path) -> dict[str, Stored]:
    """The tensors of the main weights: of one file, or of the shards that the index names.

    Names are without what wrappers left in front of all of them. Buffers that older transformers stored and that are
    computed today are left out. Raises CheckpointError for files that are missing, corrupt, ambiguous or of another
    format, and for an index that does not fit its shards.
    """
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file() and index.is_file():
        raise CheckpointError(
            f"{directory}: both {WEIGHTS} and {INDEX}, whose shards are other weights; transformers would read "
            f"{WEIGHTS}. Delete that one, or the index with its shards"
        )
    pickled = sorted(path.name for path in directory.glob(PICKLED))
    if pickled and not single.is_file() and not index.is_file():
        raise CheckpointError(
            f"{directory}: weights as {', '.join(pickled)}; only safetensors files are read. Convert them: load the "
            "model with transformers and save it with save_pretrained(directory)"
        )
    found = _read_shards(index) if index.is_file() else read_headers(single)
    kept = {name: stored for name, stored in found.items() if not name.endswith(COMPUTED)}
    prefix = wrapped(kept)
    return {name.removeprefix(prefix): stored for name, stored in kept.items()}


def _read_shards(index: Path) -> dict[str, Stored]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index}: weight_map: found {reading.shown(placed)}; allowed: the file of each tensor")
    for tensor, file in placed.items():
        reading.path_inside(index.parent, file, f"{index}: weight_map.{tensor[:80]}", CheckpointError)
    tensors: dict[str, Stored] = {}
    for name in sorted(set(placed.values())):
        found = read_headers(reading.path_inside(index.parent, name, f"{index}: weight_map", CheckpointError), name)
        expected = {key for key, file in placed.items() if file == name}
        if expected != found.keys():
            raise CheckpointError(
                f"{index.parent / name}: {_difference(expected, found)} by {INDEX}; take index and shards from the "
                "same checkpoint"
            )
        tensors |= found
    return tensors


def read_weights(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    layout: Mapping[str, Stored] | None = None,
) -> dict[str, Tensor]:
    """Tensors of the main weights, on `device`: all, or those of `layout`. `dtype` None keeps the stored types.

    Raises as `read_layout`.
    """
    layout = read_layout(directory) if layout is None else layout
    weights: dict[str, Tensor] = {}
    for file in sorted({stored.file for stored in layout.values()}):
        names = {stored.name: name for name, stored in layout.items() if stored.file == file}
        tensors = read_tensors(directory / file, dtype, device, names)
        weights |= {names[stored]: tensor for stored, tensor in tensors.items()}
    return weights


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
        raise CheckpointError(f"{source}: {_difference(expected.keys(), found.keys())}; {_advice(found)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{source}: {name} has shape {list(found[name])}, the config asks {list(shape)}")


def _advice(found: Iterable[str]) -> str:
    if any(".lora_" in name or ".base_layer." in name for name in found):
        return "adapters are not merged into these weights: merge them with peft's merge_and_unload, and save again"
    return "config.json and weights must be of one checkpoint: download it again, or save it whole"


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
        replace_directory(temporary, directory)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{directory}: cannot write the checkpoint: {error}; nothing was changed") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def dump_json(content: object, *, ordered: bool = False) -> bytes:
    """JSON as checkpoints have it: indented, sorted; `ordered` where the order of keys means something."""
    return (json.dumps(content, indent=2, sort_keys=not ordered) + "\n").encode()


def _below(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
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
        save_file(_exported(shard, export), _below(file.parent, name), metadata)
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
