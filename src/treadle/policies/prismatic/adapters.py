"""Low-rank adapters (LoRA, Hu et al. 2021) by peft on the published layers; merged for export, or saved alone.

The directory of an adapter is peft's: `adapter_config.json` and `adapter_model.safetensors`.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.errors import CheckpointError
from treadle.policies import checkpoint

FOLDER = "lora_adapter"
"""Where official training puts an adapter, beside the other files of a checkpoint."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PARTS = ("vision_backbone", "projector", "language_model")
"""Parts that adapters go into: those of the published main weights."""

_NAME = "default"
_PREFIX = "base_model.model."


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Sequence[str], frozen: Sequence[str] = ()) -> None:
    """Put fresh adapters, float32, on the layers of `model` whose last name is among `targets`, in place.

    Only on `PARTS`, but for the parts (or layers) whose names begin with one of `frozen`. The second matrix is 0, so
    that the function is as before; the first is Gaussian.
    """
    parts = tuple(f"{part}." for part in PARTS)
    names = [
        name
        for name, module in model.named_modules()
        if name.startswith(parts)
        and not name.startswith(tuple(frozen))
        and name.rpartition(".")[2] in targets
        and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    _inject(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights="gaussian"))  # pyright: ignore[reportArgumentType]


def layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_weight(layer: Any) -> Tensor:
    """The weight of an adapted layer with its adapter merged into it, rounded once."""
    weight = layer.get_base_layer().weight.detach()
    return (weight.float() + layer.get_delta_weight(_NAME).detach().float()).to(weight.dtype)


def merge(model: nn.Module) -> None:
    """Merge all adapters into the weights, in place, and take them off."""
    for name, layer in layers(model).items():
        base: Any = layer.get_base_layer()
        base.weight.data = merged_weight(layer)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, base)


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it would be without adapters: their base's weights, under the names of plain layers."""
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_A." not in name and ".lora_B." not in name
    }


def exporter(model: nn.Module) -> Callable[[str, Tensor], Tensor]:
    """What `checkpoint.write_directory` is to write of each name in `plain_state`: weights with adapters merged."""
    adapted = {f"{name}.weight": layer for name, layer in layers(model).items()}
    return lambda name, tensor: merged_weight(adapted[name]) if name in adapted else tensor


def linear_rows(layer: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """Some rows of the output of a linear layer without bias, with or without an adapter, at their cost alone."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out = F.linear(x, weight[rows])
    if isinstance(layer, LoraLayer):
        down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
        assert isinstance(down, Tensor)
        assert isinstance(up, Tensor)
        change = F.linear(F.linear(x.to(down.dtype), down), up[rows]) * layer.scaling[_NAME]
        out = (out + change).to(out.dtype)
    return out


def written(model: nn.Module, base: Path) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """Files and tensors of an adapter's directory; `base` is the directory of the weights that it belongs to."""
    settings: LoraConfig = vars(model)["peft_config"][_NAME]
    content = {**settings.to_dict(), "base_model_name_or_path": str(base.resolve()), "inference_mode": True}
    content["target_modules"] = sorted(layers(model))
    config = {key: value.value if isinstance(value, Enum) else value for key, value in content.items()}
    return {ADAPTER_CONFIG: checkpoint.dump_json(config)}, {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor for name, tensor in _matrices(model)
    }


def find_adapter(directory: Path) -> Path | None:
    """The folder of an adapter whose base lies elsewhere: beside the config where main weights are missing, or the
    directory itself.
    """
    if any((directory / name).is_file() for name in (checkpoint.WEIGHTS, checkpoint.INDEX)):
        return None
    for folder in (directory / FOLDER, directory):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
    return None


def find_base(adapter: Path) -> Path:
    """The directory that an adapter belongs to. Raises CheckpointError where it is not on this machine."""
    source = adapter / ADAPTER_CONFIG
    named = checkpoint.read_json(source).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{source}: no base_model_name_or_path, the directory of the base's weights")
    for folder in (adapter / named, Path(named)):
        if folder.is_dir():
            return folder
    raise CheckpointError(
        f"{source}: the base {named!r} is no directory here; download it, and set base_model_name_or_path to its path"
    )


def attach(model: nn.Module, adapter: Path) -> None:
    """Put a saved adapter on `model`, in place. Raises CheckpointError naming what does not fit."""
    source = adapter / ADAPTER_CONFIG
    settings = checkpoint.read_json(source)
    for key, allowed in (("use_dora", False), ("bias", "none"), ("modules_to_save", None)):
        if settings.get(key, allowed) != allowed:
            raise CheckpointError(f"{source}: {key} {settings[key]!r}; supported: {json.dumps(allowed)}")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float):
            raise CheckpointError(f"{source}: {key} {settings.get(key)!r}; it must be a number")
    path = adapter / ADAPTER_WEIGHTS
    tensors = {
        name.removeprefix(_PREFIX).replace(f".{_NAME}.", "."): tensor
        for name, tensor in checkpoint.read_tensors(path).items()
    }
    names = sorted({name.partition(".lora_")[0] for name in tensors})
    there = dict(model.named_modules())
    unknown = [name for name in names if not isinstance(there.get(name), nn.Linear | nn.Conv2d)]
    if unknown or not names:
        raise CheckpointError(f"{path}: adapters of {len(unknown)} layers that the policy has not: {unknown[:4]}")
    rank, alpha = int(settings["r"]), settings["lora_alpha"]
    if settings.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)
    _inject(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, init_lora_weights="gaussian"))
    expected = {name.replace(f".{_NAME}.", "."): parameter for name, parameter in _matrices(model)}
    checkpoint.check_shapes(checkpoint.shapes(expected), checkpoint.shapes(tensors), path)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])


def _inject(model: nn.Module, config: LoraConfig) -> None:
    inject_adapter_in_model(config, model, _NAME)
    for _, parameter in _matrices(model):
        # Of an adapter in bfloat16 the small steps of training would be lost.
        parameter.data = parameter.data.float()


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Both matrices of every adapter, by name."""
    return ((name, p) for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name)
