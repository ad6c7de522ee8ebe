"""Low-rank adapters (LoRA, Hu et al. 2021) by peft on the published layers; merged for export, or saved alone.

The directory of an adapter is peft's: `adapter_config.json` and `adapter_model.safetensors`.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.errors import CheckpointError, ConfigError
from treadle.policies import checkpoint
from treadle.policies.adapter_config import FIELDS, AdapterConfig, read_config
from treadle.policies.tensors import check_types, read_tensors
from treadle.reading import check_path

FOLDER = "lora_adapter"
"""Where official training puts an adapter, beside the other files of a checkpoint."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
"""Weights of an adapter in the format of old, which may run code when they are read."""
_MERGE = "merge it with peft's merge_and_unload, and save the whole model"
_NAME = "default"
_PREFIX = "base_model.model."


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float | None,
    targets: Sequence[str],
    *,
    published: Sequence[str],
    parts: Sequence[str],
    frozen: Sequence[str] = (),
) -> None:
    """Put fresh adapters, float32, on the layers of `model` whose last name is among `targets`, or where there are none
    among the `published`, in place. A model that has adapters of this rank keeps them. The second matrix is 0, so that
    the function is as before; the first is Gaussian.

    Args:
        alpha: None is the rank.
        parts: only these get any: parts of the model that lie in the main weights.
        frozen: none of these do, parts or layers whose names begin with one of them.

    Raises:
        ConfigError: Adapters of another rank, or a target that no layer has.
    """
    there = layers(model)
    if there:
        ranks = {layer.r[_NAME] for layer in there.values()}
        if ranks != {rank}:
            raise ConfigError(
                f"policy.lora.rank {rank}: the checkpoint has adapters of rank {sorted(ranks)}; keep theirs"
            )
        return
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise ConfigError(
            f"policy.lora.targets: no layer is named {', '.join(unknown)}; published: {', '.join(published)}"
        )
    alpha, targets = rank if alpha is None else alpha, targets or published
    names = [
        name
        for name in _adaptable(model, parts)
        if not name.startswith(tuple(frozen)) and name.rpartition(".")[2] in targets
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
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if not is_adapter(name)
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
    adapted = layers(model)
    content = {
        **settings.to_dict(),
        "base_model_name_or_path": str(base.resolve()),
        "inference_mode": True,
        "init_lora_weights": True,
        # By full names: releases of peft differ in what a part of a name matches.
        "target_modules": sorted(adapted),
        "rank_pattern": {name: x.r[_NAME] for name, x in adapted.items() if x.r[_NAME] != settings.r},
        "alpha_pattern": {
            name: x.lora_alpha[_NAME] for name, x in adapted.items() if x.lora_alpha[_NAME] != settings.lora_alpha
        },
    }
    config = {key: value.value if isinstance(value, Enum) else value for key, value in content.items() if key in FIELDS}
    return {ADAPTER_CONFIG: checkpoint.dump_json(config)}, {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor for name, tensor in _matrices(model)
    }


def find_adapter(directory: Path) -> Path | None:
    """The folder of an adapter whose base lies elsewhere: beside the config where main weights are missing, or the
    directory itself.

    Raises CheckpointError for an adapter beside main weights in the same folder: it may be merged into them or not.
    """
    beside = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED) if (directory / name).is_file()]
    main = [path.name for name in checkpoint.MAIN for path in sorted(directory.glob(name))]
    if beside and main:
        raise CheckpointError(
            f"{directory / beside[0]}: an adapter beside {main[0]}, and nothing says whether these weights have it "
            f"already. If they have, move the adapter to {FOLDER}/; if not, move it to a folder of its own, set "
            "base_model_name_or_path in its adapter_config.json to the folder of the weights, and name the adapter's"
        )
    if main:
        return None
    folders = [folder for folder in (directory / FOLDER, directory) if (folder / ADAPTER_CONFIG).is_file()]
    if len(folders) > 1:
        raise CheckpointError(f"{directory}: adapters both in {FOLDER}/ and beside it; leave one")
    return folders[0] if folders else None


def find_base(adapter: Path) -> Path:
    """The directory that an adapter belongs to. Raises CheckpointError where it is not on this machine."""
    source = adapter / ADAPTER_CONFIG
    named = checkpoint.read_json(source).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{source}: no base_model_name_or_path, the directory of the base's weights")
    check_path(named, f"{source}: base_model_name_or_path", CheckpointError)
    for folder in (adapter / named, Path(named)):
        if folder.is_dir():
            if find_adapter(folder) is not None:
                raise CheckpointError(f"{source}: the base {named!r} is an adapter too; merge that one first")
            return folder
    raise CheckpointError(
        f"{source}: the base {named!r} is no directory here; download it, and set base_model_name_or_path to its path"
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def attach(model: nn.Module, adapter: Path, parts: Sequence[str], elsewhere: tuple[str, str] | None = None) -> None:
    """Put a saved adapter on some parts of `model`, in place. Raises CheckpointError naming what does not fit.

    `elsewhere`: how the names of layers begin that have their adapters in a file of their own; in the model, and in the
    adapter's.
    """
    settings = read_config(adapter / ADAPTER_CONFIG)
    path = adapter / ADAPTER_WEIGHTS
    if not path.is_file() and (adapter / PICKLED).is_file():
        raise CheckpointError(
            f"{adapter / PICKLED}: only {ADAPTER_WEIGHTS} is read; load it with peft and save it again"
        )
    tensors = {
        name.removeprefix(_PREFIX).replace(f".{_NAME}.", "."): tensor for name, tensor in read_tensors(path).items()
    }
    check_types(path, tensors)
    here, there = elsewhere or ((), ())
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(there)}
    matrices = {name: x for name, x in tensors.items() if is_adapter(name)}
    _check_others(model, {name: x for name, x in tensors.items() if name not in matrices}, path)
    names = sorted({name.partition(".lora_")[0] for name in matrices})
    adaptable = _adaptable(model, parts)
    unknown = [name for name in names if name not in adaptable]
    if unknown or not names:
        raise CheckpointError(
            f"{path}: adapters of {len(unknown)} layers that the policy has not: {unknown[:4]}; name the adapter of "
            "this base, or this adapter's base"
        )
    _check_selected(settings, [x for x in adaptable if not x.startswith(here)], names, path)
    _inject(model, settings.lora(names))
    expected = {name.replace(f".{_NAME}.", "."): parameter for name, parameter in _matrices(model)}
    checkpoint.check_shapes(checkpoint.shapes(expected), checkpoint.shapes(matrices), path)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(matrices[name])


def _adaptable(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Layers of some parts that an adapter may be on, by name."""
    beginnings = tuple(f"{part}." for part in parts)
    return [
        name
        for name, module in model.named_modules()
        if name.startswith(beginnings) and isinstance(module, nn.Linear | nn.Conv2d)
    ]


def _check_others(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """What an adapter's file holds besides adapters: peft copies there an adapted embedding or head of the base, which
    must be the base's own. Raises CheckpointError for anything else.
    """
    base = model.state_dict()
    for name, tensor in tensors.items():
        own = base.get(name.replace(".base_layer.", "."))
        if own is None or ".lora_" in name:
            raise CheckpointError(f"{path}: {name} is no adapter of LoRA on a layer of the policy; {_MERGE}")
        if own.shape != tensor.shape or not torch.equal(own, tensor.to(own.device, own.dtype)):
            raise CheckpointError(f"{path}: {name} differs from the base's, so the adapter changed it too; {_MERGE}")


def _check_selected(settings: AdapterConfig, adaptable: list[str], names: list[str], path: Path) -> None:
    """Raises CheckpointError where the layers that the config selects are not those that have adapters."""
    selected = settings.selected(adaptable)
    if selected is None:
        return
    for problem, odd in (
        ("has adapters of layers that the config does not select", set(names) - selected),
        ("lacks adapters of layers that the config selects", selected - set(names)),
    ):
        if odd:
            some = ", ".join(sorted(odd)[:3]) + (", ..." if len(odd) > 3 else "")
            raise CheckpointError(
                f"{path}: {problem} (target_modules in {ADAPTER_CONFIG}): {some}; take both files of one adapter"
            )


def _inject(model: nn.Module, config: LoraConfig) -> None:
    inject_adapter_in_model(config, model, _NAME)
    for _, parameter in _matrices(model):
        # Of an adapter in bfloat16 the small steps of training would be lost.
        parameter.data = parameter.data.float()


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Both matrices of every adapter, by name."""
    return ((name, p) for name, p in model.named_parameters() if is_adapter(name))
