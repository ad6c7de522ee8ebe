"""Making an OpenVLA-OFT policy: from a checkpoint directory, or from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.policies import checkpoint, prismatic_load
from treadle.policies.openvla_oft.config import OpenVLAOFTConfig, from_json
from treadle.policies.openvla_oft.model import OpenVLAOFT
from treadle.policies.prismatic import OWN_FILES

PUBLISHED_PROPRIO = "proprio_projector--*.pt"
PUBLISHED_PARTS = ("action_head--*", PUBLISHED_PROPRIO, "vision_backbone--*")
"""What published directories have beside an OpenVLA's files; a policy with discrete actions alone has none of them."""


def recognizes(directory: Path, config: dict[str, Any]) -> bool:
    """Published parts of OpenVLA-OFT lie there, or it is an own directory that names no other policy."""
    return "treadle" in config or any(any(directory.glob(part)) for part in PUBLISHED_PARTS)


def create(
    config: OpenVLAOFTConfig,
    norm_stats: dict[str, Any],
    tokenizer: Path,
    *,
    statistics: str | None = None,
    seed: int = 0,
) -> OpenVLAOFT:
    """See `prismatic_load.create`."""
    return prismatic_load.create(OpenVLAOFT, config, norm_stats, tokenizer, statistics=statistics, seed=seed)


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
    found = prismatic_load.read_directory(directory, statistics)
    config = from_json(found.config, found.action_dim)
    adapted = sorted(path.name for path in directory.glob("vision_backbone--*"))
    if adapted:
        raise CheckpointError(f"{directory / adapted[0]}: a vision backbone with FiLM is not supported")
    if not config.proprioception_dim:
        config = replace(config, proprioception_dim=_published_proprioception(directory))
    config = replace(config, **overrides)
    return prismatic_load.assemble(OpenVLAOFT, config, found, device, dtype, _read_part)


def _published_proprioception(directory: Path) -> int:
    """P of a published projector, 0 where there is none."""
    return 0 if not any(directory.glob(PUBLISHED_PROPRIO)) else _read_published(directory)[0]["fc1.weight"].shape[1]


def _read_part(directory: Path, name: str) -> tuple[dict[str, Tensor], Path]:
    """Tensors of a part that is kept out of the main weights, and the file they are from."""
    published = name == "proprio_projector" and not (directory / OWN_FILES[name]).is_file()
    if published and any(directory.glob(PUBLISHED_PROPRIO)):
        return _read_published(directory)
    return prismatic_load.read_own_part(directory, name)


def _read_published(directory: Path) -> tuple[dict[str, Tensor], Path]:
    paths = sorted(directory.glob(PUBLISHED_PROPRIO))
    if len(paths) > 1:
        raise CheckpointError(f"{directory}: {len(paths)} proprio projectors ({paths[0].name}, ...); leave one")
    state = checkpoint.read_torch(paths[0])
    if "fc1.weight" not in state or state["fc1.weight"].ndim != 2:
        raise CheckpointError(f"{paths[0]}: no matrix fc1.weight; it has: {', '.join(sorted(state))}")
    return state, paths[0]
