"""Reading and writing the directory of a SmolVLA: lerobot's files, and Treadle's beside them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import CheckpointError, ConfigError
from treadle.policies import adapters, checkpoint
from treadle.policies.smolvla.config import ACTION, OWN, STATE, Published, Settings, infer_sizes, published_settings
from treadle.policies.smolvla.processors import Processors, is_statistic, read_processors, write_processors
from treadle.policies.smolvla.prompt import find_tokenizer
from treadle.policies.smolvla.sizes import Sizes
from treadle.policies.smolvla.statistics import Normalizer, list_groups, read_normalizer, select_group
from treadle.policies.tensors import Stored, check_types, read_tensors
from treadle.tables import check, read_table

NETWORK = "model."
"""In front of the names of the network's tensors."""
PARTS = ("value_head", "noise_head")
"""Parts of Treadle's own, each in a file of its own, for lerobot to pass over."""
LORA_TARGETS = (
    *("q_proj", "v_proj", "state_proj", "action_in_proj", "action_out_proj"),
    *("action_time_mlp_in", "action_time_mlp_out"),
)
"""Layers that lerobot puts adapters on, by the last part of their names."""
_COMPILED = "_orig_mod."
_OWN_KEYS = ("policy", "statistics")
HEAD = "model.vlm_with_expert.vlm.lm_head.weight"
"""The language head, which is never used and may be missing."""


@dataclass(frozen=True, slots=True)
class Scales:
    """How a policy scales what it reads and says."""

    name: str
    """Of the statistics."""
    statistics: dict[str, Tensor]
    """By `feature.statistic`, as they are written."""
    state: Normalizer
    action: Normalizer


@dataclass(frozen=True, slots=True)
class Directory:
    """What a directory holds."""

    config: dict[str, Any]
    """Its config.json as it was read."""
    published: Published
    """The same, checked."""
    settings: Settings
    sizes: Sizes
    processors: Processors
    scales: Scales | None
    """None for a policy that is to get statistics before it acts."""
    tokenizer: dict[str, bytes]
    layout: dict[str, Stored]
    """Tensors of the network by their names in it."""
    weights: Path | None = None
    """The directory of the network: this one, or that of an adapter's base; None for a policy made from nothing."""
    adapter: Path | None = None
    """The folder of an adapter that is not merged into it."""


def read_directory(
    path: Path,
    statistics: str | None,
    *,
    tokenizer: str | None = None,
    without_statistics: bool = False,
    **overrides: Any,
) -> Directory:
    """Read a directory, but for its weights. `overrides` are settings. Raises CheckpointError or ConfigError."""
    adapter = adapters.find_adapter(path)
    weights = path if adapter is None else adapters.find_base(adapter)
    source = path / checkpoint.CONFIG
    config = checkpoint.read_json(source)
    published = read_table(Published, config, str(source))
    own = checkpoint.read_json(path / OWN) if (path / OWN).is_file() else {}
    settings = read_settings(published, own, str(path / OWN), overrides)
    layout, others = _read_layout(weights)
    sizes = infer_sizes({name: stored.shape for name, stored in layout.items()}, published, settings)
    old = checkpoint.read_weights(weights, layout=others)
    processors = read_processors(path, published, old)
    named = None if statistics == own.get("statistics") else statistics
    scales = None
    if not without_statistics:
        scales = read_scales(processors, published, named, own.get("statistics") or statistics)
    files = find_tokenizer(path, config.get("vlm_model_name"), tokenizer)
    return Directory(config, published, settings, sizes, processors, scales, files, layout, weights, adapter)


def read_settings(config: Published, own: Mapping[str, Any], source: str, overrides: Mapping[str, Any]) -> Settings:
    """Settings of lerobot's config, of Treadle's file and of the user, each before the one before it."""
    kept = {key: value for key, value in own.items() if key not in _OWN_KEYS}
    merged = published_settings(config) | read_table(Settings, published_settings(config) | kept, source).model_dump(
        exclude_unset=True
    )
    settings = check(Settings, merged | dict(overrides), ConfigError, "policy.options.")
    if settings.chunk > config.chunk_size:
        raise ConfigError(
            f"policy.options.chunk: found {settings.chunk}; allowed: at most the {config.chunk_size} actions that the "
            "network predicts (chunk_size)"
        )
    if settings.cameras > max(1, len(config.cameras())):
        raise ConfigError(
            f"policy.options.cameras: found {settings.cameras}; allowed: at most {len(config.cameras())}, the "
            f"cameras of config.json: {', '.join(config.cameras())}"
        )
    if not settings.deviation[0] < settings.deviation[1]:
        raise ConfigError(f"policy.options.deviation: found {settings.deviation}; allowed: the smaller bound first")
    if settings.drawn == "last" and settings.noise == "cps":
        raise ConfigError(
            "policy.options.drawn: found 'last' with policy.options.noise 'cps', whose last step has no noise; use "
            "'one' or 'all'"
        )
    return settings


def read_scales(processors: Processors, config: Published, group: str | None, name: str | None) -> Scales:
    """The scaling by a group of statistics, None for the plain one. Raises CheckpointError."""
    source, modes, groups = processors.source, processors.modes, list_groups(processors.statistics)
    none = modes.STATE == modes.ACTION == "IDENTITY"
    found = {} if none else select_group(processors.statistics, group, source)

    def scale(feature: str, mode: Any) -> Normalizer:
        return read_normalizer(found, feature, mode, config.size(feature), processors.epsilon, source, groups)

    return Scales(name or "plain", found, scale(STATE, modes.STATE), scale(ACTION, modes.ACTION))


def fit_features(found: Directory, statistics: Mapping[str, Any]) -> Directory:
    """The directory for a robot with as many numbers of proprioception and actions as statistics of its data set have;
    the network pads both. Raises ConfigError for more than it pads to.
    """
    config = copy.deepcopy(found.config)
    for feature, part, features, most, limit in (
        (STATE, "proprio", "input_features", found.sizes.state, "max_state_dim"),
        (ACTION, "action", "output_features", found.sizes.action, "max_action_dim"),
    ):
        count = len(statistics[part]["mask"])
        if count > most:
            raise ConfigError(f"the data set has {feature!r} of {count} numbers; the network takes {most} ({limit})")
        config[features][feature]["shape"] = [count]
    return replace(found, config=config, published=read_table(Published, config, checkpoint.CONFIG))


def new_scales(processors: Processors, config: Published, name: str, statistics: Mapping[str, Any]) -> Scales:
    """The scaling by statistics of a data set, as `Policy.rescale` takes them. Raises ConfigError."""
    tensors = {
        f"{feature}.{statistic}": torch.tensor(values, dtype=torch.float32)
        for feature, part in ((STATE, "proprio"), (ACTION, "action"))
        for statistic, values in statistics[part].items()
        if statistic != "mask"
    }
    try:
        return read_scales(replace(processors, source=f"statistics {name!r}", statistics=tensors), config, None, name)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _read_layout(path: Path) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """The network's tensors by their names in it, and the statistics of older directories. Raises CheckpointError."""
    network: dict[str, Stored] = {}
    others: dict[str, Stored] = {}
    for name, stored in checkpoint.read_layout(path).items():
        plain = name.replace(_COMPILED, "")
        if is_statistic(plain):
            others[plain] = stored
        elif plain.startswith(NETWORK):
            network[plain.removeprefix(NETWORK)] = stored
        else:
            raise CheckpointError(
                f"{path / stored.file}: {name}: unknown tensor; allowed: the network's, whose names begin with "
                f"{NETWORK}, and statistics"
            )
    for file in {stored.file for stored in network.values()}:
        check_types(path / file, {name: stored for name, stored in network.items() if stored.file == file})
    return network, others


def read_part(path: Path, name: str) -> dict[str, Tensor] | None:
    """Tensors of a part of Treadle's own; None where the directory has none."""
    file = path / f"{name}.safetensors"
    return read_tensors(file) if file.is_file() else None


def write_directory(path: Path, found: Directory, kind: str, module: nn.Module, *, merge: bool = True) -> None:
    """Write a directory that lerobot 0.4.4 and `read_directory` read, with the weights of a policy of this kind.
    Adapters are merged; or, without `merge`, saved alone beside the path of their base.

    Raises ConfigError for a policy without statistics, or an adapter without a base, and OutputError where it cannot be
    written.
    """
    if found.scales is None:
        raise ConfigError("policy.options.without_statistics: statistics are missing yet, so the policy is not saved")
    config = copy.deepcopy(found.config)
    config |= {"n_action_steps": found.settings.chunk, "num_steps": found.settings.steps}
    own = {"policy": kind, "statistics": found.scales.name, **found.settings.model_dump(exclude_unset=True)}
    others = {
        name: tensor
        for name, tensor in found.processors.statistics.items()
        if not any(name.rpartition(".")[0].endswith(feature) for feature in (STATE, ACTION))
    }
    files, tensors = write_processors(found.processors, others | found.scales.statistics, config)
    main: dict[str, Tensor] = {}
    for name, tensor in adapters.plain_state(module).items():
        part, _, rest = name.partition(".")
        if part in PARTS:
            tensors.setdefault(f"{part}.safetensors", {})[rest] = tensor
        else:
            main[name] = tensor
    if merge or not adapters.layers(module):
        tensors[checkpoint.WEIGHTS] = main
    else:
        if found.weights is None:
            raise ConfigError("an adapter is saved alone beside a base, and this policy was made, not loaded")
        texts, matrices = adapters.written(module, found.weights)
        files |= {f"{adapters.FOLDER}/{name}": text for name, text in texts.items()}
        tensors[f"{adapters.FOLDER}/{adapters.ADAPTER_WEIGHTS}"] = matrices
    # The order of features is that of cameras.
    files |= {
        checkpoint.CONFIG: checkpoint.dump_json(config, ordered=True),
        OWN: checkpoint.dump_json(own),
        **found.tokenizer,
    }
    checkpoint.write_directory(path, files, tensors, export=adapters.exporter(module))
