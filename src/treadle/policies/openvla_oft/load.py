"""Making an OpenVLA-OFT policy: from a checkpoint directory, or from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from treadle.errors import CheckpointError
from treadle.policies import checkpoint
from treadle.policies.image import PREPROCESSOR, make_preprocessor
from treadle.policies.openvla_oft.config import OpenVLAOFTConfig, from_json
from treadle.policies.openvla_oft.model import OWN_FILES, OpenVLAOFT
from treadle.policies.prompt import TOKENIZER
from treadle.policies.statistics import select_key

PUBLISHED_PROPRIO = "proprio_projector--*.pt"


def create(
    config: OpenVLAOFTConfig,
    norm_stats: dict[str, Any],
    tokenizer: Path,
    *,
    statistics: str | None = None,
    seed: int = 0,
) -> OpenVLAOFT:
    """A policy with random weights. `tokenizer`: a directory that `build_tokenizer` wrote."""
    files = checkpoint.read_carried(tokenizer)
    if TOKENIZER not in files:
        raise checkpoint.missing(tokenizer / TOKENIZER)
    files.setdefault(PREPROCESSOR, make_preprocessor(config.image_size, len(config.towers)))
    key = select_key(norm_stats, statistics, "norm_stats")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OpenVLAOFT(config, norm_stats, key, files)


def load(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    statistics: str | None = None,
    **overrides: Any,
) -> OpenVLAOFT:
    """Read a published or own directory. `dtype` None keeps the stored one; `overrides` are fields of the config.

    A proprioception projector is used where there is one: `proprio_projector.safetensors` (own) or
    `proprio_projector--*.pt` (published); `proprioception_dim=0` leaves it out. L1 action heads are left aside.
    Raises CheckpointError.
    """
    raw = checkpoint.read_json(directory / checkpoint.CONFIG)
    norm_stats, source = checkpoint.read_norm_stats(directory, raw)
    key = select_key(norm_stats, statistics, source)
    action = norm_stats[key].get("action", {})
    if not action.get("q99") and not action.get("max"):
        raise CheckpointError(f"{source}: {key} has no action statistics")
    config = from_json(raw, len(action.get("q99") or action["max"]))
    adapted = sorted(path.name for path in directory.glob("vision_backbone--*"))
    if adapted:
        raise CheckpointError(f"{directory / adapted[0]}: a vision backbone with FiLM is not supported")
    if not config.proprioception_dim:
        config = replace(config, proprioception_dim=_published_proprioception(directory))
    config = replace(config, **overrides)
    files = checkpoint.read_carried(directory)
    if TOKENIZER not in files:
        raise checkpoint.missing(directory / TOKENIZER)
    policy = OpenVLAOFT(config, norm_stats, key, files, allocate=False)
    main = nn.Module()
    for name, module in policy.named_children():
        if name in OWN_FILES:
            checkpoint.assign(module, *_read_part(directory, name))
        else:
            main.add_module(name, module)
    checkpoint.assign(main, checkpoint.read_weights(directory), directory)
    # Its buffer is computed, not stored.
    policy.language_model.model.rotary_emb = LlamaRotaryEmbedding(policy.language_model.config)
    for name, module in policy.named_children():
        module.to(device=device, dtype=torch.float32 if name == "value_head" else dtype)
    return policy


def _published_proprioception(directory: Path) -> int:
    """P of a published projector, 0 where there is none."""
    return 0 if not any(directory.glob(PUBLISHED_PROPRIO)) else _read_published(directory)[0]["fc1.weight"].shape[1]


def _read_part(directory: Path, name: str) -> tuple[dict[str, Tensor], Path]:
    """Tensors of a part that is kept out of the main weights, and the file they are from."""
    own = directory / OWN_FILES[name]
    if name == "proprio_projector" and not own.is_file() and any(directory.glob(PUBLISHED_PROPRIO)):
        return _read_published(directory)
    return checkpoint.read_tensors(own), own


def _read_published(directory: Path) -> tuple[dict[str, Tensor], Path]:
    paths = sorted(directory.glob(PUBLISHED_PROPRIO))
    if len(paths) > 1:
        raise CheckpointError(f"{directory}: {len(paths)} proprio projectors ({paths[0].name}, ...); leave one")
    state = checkpoint.read_torch(paths[0])
    if "fc1.weight" not in state or state["fc1.weight"].ndim != 2:
        raise CheckpointError(f"{paths[0]}: no matrix fc1.weight; it has: {', '.join(sorted(state))}")
    return state, paths[0]
