"""What can be said of a directory of the OpenVLA family before its weights are loaded."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from treadle.policies import adapters, checkpoint
from treadle.policies.footprint import learn
from treadle.policies.inspection import (
    LORA_RANK,
    CheckpointContents,
    Memory,
    Remark,
    count_parameters,
    count_types,
    find_not_finite,
)
from treadle.policies.prismatic.film import read_film
from treadle.policies.prismatic.load import (
    CRITIC,
    OWN,
    PUBLISHED,
    Directory,
    attach_adapter,
    find_part,
    read_part,
    settings_directory,
)
from treadle.policies.prismatic.statistics import count_actions

if TYPE_CHECKING:
    from treadle.policies.prismatic.stored import StoredPolicy


def remarks(made: "StoredPolicy", found: Directory, dtype: torch.dtype | None) -> list[Remark]:
    """What of a directory is not used, or not as it is stored. `dtype` is the type asked for, if one is."""
    said: list[Remark] = []

    def say(text: str, *, warning: bool = False) -> None:
        said.append(Remark(text, warning))

    types = count_types(found.layout.values())
    if len(types) > 1:
        counts = ", ".join(f"{count} {dtype}" for dtype, count in types.items())
        name = str(dtype or found.dtype).removeprefix("torch.")
        otherwise = "unless dtype says otherwise, " if dtype is None else ""
        say(f"tensors of several types ({counts}); {otherwise}all become {name}", warning=dtype is None)
    if found.critic is not None:
        say(f"the value head among the main weights is used: {found.critic.outputs} values per decision")
    elif found.foreign:
        first, more = next(iter(found.foreign)), len(found.foreign) - 1
        say(
            f"{first} and {more} more in the main weights are a value head of another program and are not read; "
            "training begins with a fresh one",
            warning=True,
        )
    for name in PUBLISHED:
        file = find_part(found.path, name)
        if file is None or getattr(made, name, None) is not None:
            continue
        if name == "action_head":
            say(
                f"{file.name} is not used, and tokens decide instead: official training of that head does not train "
                "the head of tokens",
                warning=True,
            )
        else:
            say(f"{file.name} is not used")
    if found.adapter is None and (found.path / adapters.FOLDER / adapters.ADAPTER_CONFIG).is_file():
        say(f"{adapters.FOLDER}/ lies beside main weights, which have it merged in the published layout; not used")
    used = {stored.file for stored in found.layout.values()}
    stale = sorted(path.name for path in found.weights.glob("model*.safetensors") if path.name not in used)
    stale += sorted(path.name for path in found.weights.glob(checkpoint.PICKLED))
    if stale:
        say(f"not used: {', '.join(stale)}")
    return said


def examine(
    policy_class: "type[StoredPolicy]",
    directory: Path,
    statistics: str | None,
    dtype: torch.dtype | None,
    overrides: dict[str, Any],
) -> CheckpointContents:
    """Look into a directory, through its weights one after another. Raises CheckpointError for what would keep it from
    loading.
    """
    settings = settings_directory(directory)
    keys, _ = checkpoint.read_norm_stats(settings, checkpoint.read_json(settings / checkpoint.CONFIG))
    if statistics is None and isinstance(keys, dict) and len(keys) > 1:
        statistics = min(keys)
    policy, found = policy_class.skeleton(directory, statistics, **overrides)
    stored = {name: entry.shape for name, entry in found.layout.items()}
    checkpoint.check_shapes(checkpoint.shapes(policy.main_state()), stored, found.weights)
    parameters, said = count_parameters(policy), tuple(remarks(policy, found, dtype))
    dtype = dtype or found.dtype
    memory, training = estimate(policy, dtype)
    types = _check_parts(policy, found)
    if found.adapter is not None:
        attach_adapter(policy, found)
    facts = policy.config.facts()
    state = facts["proprioception_dim"]
    descriptions = {
        "actions": f"{policy.chunk} per decision, of {policy.action_dim} dimensions each",
        "head": f"{facts.get('head', 'tokens')}, scaled by {facts['normalization']}",
        "cameras": str(facts["cameras"] or "not said; it takes any number"),
        "proprioception": f"{state} numbers" if state else "none",
    }
    descriptions |= policy_class.conventions(found, policy.config)
    if facts.get("film"):
        descriptions["FiLM"] = "the instruction modulates the towers"
    return CheckpointContents(
        directory=directory,
        policy=policy_class.kind,
        parameters=parameters,
        types=count_types(found.layout.values()),
        dtype=str(dtype).removeprefix("torch."),
        part_types=types,
        stored_bytes=sum(entry.bytes for entry in found.layout.values()),
        files=len({entry.file for entry in found.layout.values()}),
        memory_bytes=memory,
        training_bytes=training,
        settings=facts,
        descriptions=descriptions,
        statistics={key: count_actions(keys, key, found.source) for key in keys},
        adapter=found.adapter,
        remarks=said,
        not_finite=_not_finite(found),
    )


def _check_parts(policy: "StoredPolicy", found: Directory) -> dict[str, str]:
    """The type of each part in a file of its own, by file. Raises CheckpointError for parts that do not fit."""
    types: dict[str, str] = {}
    for name in OWN:
        module = getattr(policy, name, None)
        path = find_part(found.path, name)
        if module is None or (name == CRITIC and found.critic is not None):
            continue
        if path is None and policy.make_part(name, policy.device):
            continue
        tensors, source = read_part(found.path, name)
        checkpoint.check_shapes(
            checkpoint.shapes(module.state_dict()), checkpoint.shapes(tensors), found.path / source.file
        )
        types[source.file] = _types(tensors)
    towers = find_part(found.path, "vision_backbone")
    if towers is not None and policy.config.facts().get("film"):
        tensors, _ = read_part(found.path, "vision_backbone")
        expected, there = policy.vision_backbone.state_dict(), read_film(tensors, towers)
        checkpoint.check_shapes(checkpoint.shapes(expected), checkpoint.shapes(there), towers)
        types[towers.name] = _types(tensors)
    return types


def _types(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))


def _not_finite(found: Directory) -> dict[str, int]:
    """Tensors that have NaN or infinite numbers, and how many, by file and name."""
    files = {found.weights / entry.file for entry in found.layout.values()}
    files |= {path for name in (*OWN, *PUBLISHED) if (path := find_part(found.path, name)) is not None}
    if found.adapter is not None:
        files.add(found.adapter / adapters.ADAPTER_WEIGHTS)
    return {f"{path.name}: {name}": count for path in sorted(files) for name, count in find_not_finite(path).items()}


def estimate(policy: "StoredPolicy", dtype: torch.dtype) -> tuple[Memory, dict[str, dict[str, int]]]:
    """Memory of a policy on the meta device whose weights get a type, and what that of each way of fine-tuning is made
    of: a sample at a time, with gradient checkpointing.
    """
    film = bool(policy.config.facts().get("film"))
    policy.typed(dtype)
    training: dict[str, dict[str, int]] = {}
    further = 0
    for way in ("lora", "full"):
        trained = copy.deepcopy(policy)
        if way == "lora":
            trained.add_lora(LORA_RANK, vision=not film)
        trained.freeze(vision=way == "lora" and film)
        activations = trained.activations()
        training[way], further = learn(trained, activations), activations.training(1, recompute=True)
    full, lora = (sum(training[way].values()) for way in ("full", "lora"))
    acting = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    return Memory(acting=acting, full=full, lora=lora, further_sample=further), training
