"""`adapter_config.json` of peft's LoRA: every key is used, has its only supported value, or is ignored on purpose."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from treadle.errors import CheckpointError
from treadle.policies import checkpoint
from treadle.reading import library

FIELDS = (
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("megatron_config", "megatron_core", "loftq_config", "use_dora", "layer_replication"),
)
"""Keys that peft 0.11.1 knows, the official code's pin: it refuses a file with any other, so no other is written."""

_SELECTING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_USED = ("base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", *_SELECTING)
_IGNORED = (
    *("auto_mapping", "revision", "task_type", "inference_mode", "peft_version", "megatron_core", "runtime_config"),
    # Of training alone.
    *("lora_dropout", "qalora_group_size"),
    # Of a kind of layer that no policy has: peft too takes it as false for others.
    "fan_in_fan_out",
    # How the initial weights of `init_lora_weights` were found.
    "eva_config",
)
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    # Others start from changed weights of the base, which the adapter's file does not hold.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
MOST = 2**20
"""Of ranks and their scales; a larger one is a slip of the pen."""
_OFF = (None, False, {}, [], "")
"""Values of any other key, also one of a later peft, that leave its feature out."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is used of a file; `selecting` are peft's keys that choose layers."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    selecting: dict[str, Any]
    source: Path

    def lora(self, names: list[str]) -> LoraConfig:
        """Peft's config of these adapters on the layers `names`."""
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            use_rslora=self.rslora,
            rank_pattern=self.rank_pattern,
            alpha_pattern=self.alpha_pattern,
            target_modules=names,
            init_lora_weights="gaussian",
        )

    def selected(self, names: Iterable[str]) -> set[str] | None:
        """Those of the layers `names` that the config selects, by peft's rules; None where it selects every kind.

        Raises CheckpointError for rules that peft does not take.
        """
        targets = self.selecting.get("target_modules")
        if targets is None or (isinstance(targets, str) and targets.lower() == "all-linear"):
            return None
        with library(f"{self.source}: {', '.join(self.selecting)}", CheckpointError, "peft's choice of layers"):
            config = LoraConfig(**self.selecting)
            return {name for name in names if check_target_module_exists(config, name)}


def read_config(path: Path) -> AdapterConfig:
    """Read and check a file. Raises CheckpointError, which names key, value, and what is allowed."""
    raw = checkpoint.read_json(path)
    for key, value in raw.items():
        allowed = _allowed(key, value)
        if allowed:
            raise CheckpointError(f"{path}: {key} {value!r:.120}; {allowed}")
    for key in ("r", "lora_alpha"):
        if key not in raw:
            raise CheckpointError(f"{path}: no {key}; it must be a number above 0, of 2**20 at most")
    return AdapterConfig(
        raw["r"],
        raw["lora_alpha"],
        raw.get("use_rslora", False),
        raw.get("rank_pattern") or {},
        raw.get("alpha_pattern") or {},
        {key: raw[key] for key in _SELECTING if raw.get(key) is not None},
        path,
    )


def _allowed(key: str, value: object) -> str:
    """What a key allows, where the value is anything else; empty where it fits."""
    match key:
        case "r" | "lora_alpha":
            return "" if _is_number(value, whole=key == "r") else "it must be a number above 0, of 2**20 at most"
        case "rank_pattern" | "alpha_pattern":
            fits = value is None or _is_pattern(value, whole=key == "rank_pattern")
            return "" if fits else "it must give numbers above 0 by regular expressions of layers"
        case "use_rslora":
            return "" if isinstance(value, bool) else "allowed: true, false"
        case "target_modules" | "exclude_modules":
            listed = isinstance(value, list) and all(isinstance(name, str) for name in value)
            fits = value is None or isinstance(value, str) or listed
            return "" if fits else "it must be a list of names, or a regular expression"
        case _ if key in _USED or key in _IGNORED:
            return ""
    allowed = _SUPPORTED.get(key, _OFF)
    # True is not 1 here.
    if any(value == x and type(value) is type(x) for x in allowed):
        return ""
    if key not in _SUPPORTED:
        allowed = (False,) if isinstance(value, bool) else (None,)
    names = ", ".join(json.dumps(x) for x in allowed)
    return f"supported: {names}. Merge the adapter with peft's merge_and_unload, and save the whole model"


def _is_pattern(value: object, whole: bool) -> bool:
    if not isinstance(value, dict):
        return False
    try:
        return all(re.compile(name) and _is_number(number, whole) for name, number in value.items())
    except (re.error, RecursionError, OverflowError):
        return False


def _is_number(value: object, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value <= MOST
