"""lerobot's processor files: pipelines of steps around the network, some with a file of tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from treadle.config.section import NonNegative, Positive
from treadle.errors import CheckpointError
from treadle.policies import checkpoint
from treadle.policies.smolvla.config import Feature, Modes, Published
from treadle.policies.tensors import read_tensors
from treadle.reading import shown
from treadle.tables import Table, read_table

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
_NORMALIZER, _UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
_TOKENIZER, _RENAME = "tokenizer_processor", "rename_observations_processor"
NEUTRAL = ("to_batch_processor", "device_processor", "smolvla_new_line_processor", "smolvla_new_line_processor_new")
"""Steps that need nothing of their files: every prompt ends with a new line."""
STATE_FILES = {
    _NORMALIZER: "policy_preprocessor_step_5_normalizer_processor.safetensors",
    _UNNORMALIZER: "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
}
"""Files of statistics, as lerobot names them for these pipelines."""
_OLD = re.compile(r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\.(?:(.+)[._])?buffer_(.+)\.(\w+)")
"""Statistics among the weights of older directories, such as `normalize_inputs.buffer_observation_state.mean`."""


class _Step(Table):
    registry_name: str | None = None
    class_: str | None = Field(None, alias="class")
    config: dict[str, Any] = {}
    state_file: str | None = None


class _Pipeline(Table):
    ignored: ClassVar[frozenset[str]] = frozenset(["name"])

    steps: list[_Step]


class _Tokenizer(Table):
    ignored: ClassVar[frozenset[str]] = frozenset(["padding", "tokenizer_name", "truncation"])

    max_length: Positive
    task_key: Literal["task"] = "task"
    padding_side: Literal["right"] = "right"


class _Normalizer(Table):
    eps: NonNegative = 1e-8
    features: dict[str, Feature]
    norm_map: Modes
    normalize_observation_keys: None = None


class _Rename(Table):
    rename_map: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Processors:
    """What the pipelines say."""

    source: str
    """The file of the statistics."""
    statistics: dict[str, Tensor]
    """By `[group.]feature.statistic`."""
    modes: Modes
    epsilon: float
    prompt_length: int
    rename: dict[str, str]
    """Names of cameras; carried along, for cameras are known by their order here."""


def read_processors(directory: Path, config: Published, weights: Mapping[str, Tensor]) -> Processors:
    """Processors of a directory. `weights` are tensors of its main weights that are no part of the network, in which
    older directories keep statistics. Raises CheckpointError for a step that is not known, or that disagrees.
    """
    if not (directory / PREPROCESSOR).is_file():
        source = str(directory / checkpoint.WEIGHTS)
        statistics = _old_statistics(weights, source)
        return Processors(source, statistics, config.normalization_mapping, 1e-8, config.tokenizer_max_length, {})
    before, after = (_read_steps(directory / name) for name in (PREPROCESSOR, POSTPROCESSOR))
    files = [str(directory / name) for name in (PREPROCESSOR, POSTPROCESSOR)]
    tokenizer = read_table(_Tokenizer, _only(before, _TOKENIZER, files[0]).config, files[0], _TOKENIZER)
    rename = [read_table(_Rename, s.config, files[0], _RENAME) for s in before if s.registry_name == _RENAME]
    steps = (_only(before, _NORMALIZER, files[0]), _only(after, _UNNORMALIZER, files[1]))
    tables = [
        read_table(_Normalizer, step.config, file, str(step.registry_name))
        for step, file in zip(steps, files, strict=True)
    ]
    states = [read_tensors(directory / step.state_file) if step.state_file else {} for step in steps]
    for name, tensor in states[1].items():
        own = states[0].get(name, tensor)
        if not torch.equal(own, tensor):
            raise CheckpointError(
                f"{files[1]}: {name} differs from that of {PREPROCESSOR}; both must scale by the same statistics"
            )
    if tables[0].norm_map.ACTION != tables[1].norm_map.ACTION:
        raise CheckpointError(
            f"{files[1]}: norm_map.ACTION: found {tables[1].norm_map.ACTION}; {PREPROCESSOR} has "
            f"{tables[0].norm_map.ACTION}; they must agree"
        )
    return Processors(
        files[0],
        states[0] | states[1],
        tables[0].norm_map,
        tables[0].eps,
        tokenizer.max_length,
        rename[0].rename_map if rename else {},
    )


def write_processors(
    found: Processors, statistics: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, bytes], dict[str, dict[str, Tensor]]]:
    """Files and tensors of both pipelines as lerobot 0.4.4 writes them."""
    modes = found.modes.model_dump()
    inputs, outputs = config["input_features"], config["output_features"]

    def scale(features: Mapping[str, Any]) -> dict[str, Any]:
        return {"eps": found.epsilon, "features": dict(features), "norm_map": modes}

    def step(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        file = {"state_file": STATE_FILES[name]} if name in STATE_FILES and statistics else {}
        return {"registry_name": name, "config": dict(settings), **file}

    tokenizer = {
        "max_length": found.prompt_length,
        "task_key": "task",
        "padding_side": "right",
        "padding": config.get("pad_language_to", "longest"),
        "truncation": True,
        "tokenizer_name": config.get("vlm_model_name"),
    }
    before = [
        step(_RENAME, {"rename_map": found.rename}),
        step("to_batch_processor", {}),
        step("smolvla_new_line_processor", {}),
        step(_TOKENIZER, tokenizer),
        step("device_processor", {"device": "cpu", "float_dtype": None}),
        step(_NORMALIZER, scale({**inputs, **outputs})),
    ]
    after = [
        step(_UNNORMALIZER, scale(outputs)),
        step("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    files = {
        PREPROCESSOR: checkpoint.dump_json({"name": "policy_preprocessor", "steps": before}),
        POSTPROCESSOR: checkpoint.dump_json({"name": "policy_postprocessor", "steps": after}),
    }
    return files, {file: dict(statistics) for file in STATE_FILES.values()} if statistics else {}


def _read_steps(path: Path) -> list[_Step]:
    steps = read_table(_Pipeline, checkpoint.read_json(path), str(path)).steps
    known = (*NEUTRAL, _NORMALIZER, _UNNORMALIZER, _TOKENIZER, _RENAME)
    for number, step in enumerate(steps):
        if step.registry_name not in known:
            found = shown(step.registry_name or step.class_)
            raise CheckpointError(f"{path}: steps[{number}]: found {found}; allowed: {', '.join(known)}")
    return steps


def _only(steps: list[_Step], name: str, file: str) -> _Step:
    found = [step for step in steps if step.registry_name == name]
    if len(found) != 1:
        raise CheckpointError(f"{file}: {len(found)} steps {name!r}; there must be one")
    return found[0]


def _old_statistics(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Statistics among weights. Raises CheckpointError where those of inputs, targets and outputs differ."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _OLD.fullmatch(name)
        if match is None:
            continue
        group, feature, statistic = match.groups()
        feature = feature.replace("observation_state", "observation.state")
        key = f"{group}.{feature}.{statistic}" if group else f"{feature}.{statistic}"
        if key in found and not torch.equal(found[key], tensor):
            raise CheckpointError(f"{source}: {name} differs from another statistic of {feature!r}; they must agree")
        found[key] = tensor
    return found


def is_statistic(name: str) -> bool:
    """Whether a tensor among the weights is a statistic of an older directory."""
    return _OLD.fullmatch(name) is not None
