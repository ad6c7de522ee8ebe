"""Making an OpenVLA-OFT policy: from a checkpoint directory, or from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from treadle.errors import CheckpointError
from treadle.policies import prismatic_load
from treadle.policies.film import film_rank
from treadle.policies.openvla_oft.config import OpenVLAOFTConfig, from_json
from treadle.policies.openvla_oft.model import OpenVLAOFT
from treadle.policies.parts import PUBLISHED, find_part, read_part
from treadle.policies.prismatic_config import override
from treadle.policies.prismatic_load import Directory


def recognizes(directory: Path, config: dict[str, Any]) -> bool:
    """Published parts of OpenVLA-OFT lie there, or it is an own directory that names no other policy.

    A policy with discrete actions alone has no such parts.
    """
    return "treadle" in config or any(any(directory.glob(pattern)) for pattern in PUBLISHED.values())


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


def skeleton(directory: Path, statistics: str | None = None, **overrides: Any) -> tuple[OpenVLAOFT, Directory]:
    """The policy of a directory without its weights, and what was read. `overrides` are fields of the config."""
    found = prismatic_load.read_directory(directory, statistics)
    config = from_json(found.config, found.action_dim)
    parts: dict[str, Any] = {}
    if not config.proprioception_dim:
        parts["proprioception_dim"] = prismatic_load.published_proprioception(found.path)
    head = find_part(found.path, "action_head")
    if head is not None and "head" not in found.config.get("treadle", {}):
        parts["head"] = "laplace"
    if find_part(found.path, "vision_backbone") is not None:
        parts |= {"film": True, "film_rank": film_rank(read_part(found.path, "vision_backbone")[0])}
    config = override(replace(config, **parts), overrides)
    if config.head != "tokens" and head is None:
        raise CheckpointError(f"{found.path}: head {config.head!r} needs an action_head file, and there is none")
    return prismatic_load.skeleton(OpenVLAOFT, config, found), found


def load(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    statistics: str | None = None,
    merge: bool = True,
    **overrides: Any,
) -> OpenVLAOFT:
    """Read a published or own directory. `dtype` None keeps the stored one; `overrides` are fields of the config.

    What lies in files of its own is used where there is such a file: a proprioception projector
    (`proprioception_dim=0` leaves it out), an L1 action head (`head="tokens"` leaves it out), towers with FiLM.
    Raises CheckpointError.
    """
    return prismatic_load.fill(*skeleton(directory, statistics, **overrides), device, dtype, merge)
