"""Making an OpenVLA policy: from a checkpoint directory, or from scratch."""

from pathlib import Path
from typing import Any

import torch

from treadle.policies import prismatic_load
from treadle.policies.openvla.config import OpenVLAConfig
from treadle.policies.openvla.model import OpenVLA
from treadle.policies.prismatic_config import from_json, override
from treadle.policies.prismatic_load import Directory


def recognizes(_directory: Path, config: dict[str, Any]) -> bool:
    """A published directory; it is asked after those that have more to show."""
    return "treadle" not in config


def create(
    config: OpenVLAConfig,
    norm_stats: dict[str, Any],
    tokenizer: Path,
    *,
    statistics: str | None = None,
    seed: int = 0,
) -> OpenVLA:
    """See `prismatic_load.create`."""
    return prismatic_load.create(OpenVLA, config, norm_stats, tokenizer, statistics=statistics, seed=seed)


def skeleton(directory: Path, statistics: str | None = None, **overrides: Any) -> tuple[OpenVLA, Directory]:
    """The policy of a directory without its weights, and what was read. `overrides` are fields of the config."""
    found = prismatic_load.read_directory(directory, statistics)
    config = override(from_json(OpenVLAConfig, found.config, found.action_dim), overrides)
    return prismatic_load.skeleton(OpenVLA, config, found), found


def load(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    statistics: str | None = None,
    merge: bool = True,
    **overrides: Any,
) -> OpenVLA:
    """Read a published or own directory. `dtype` None keeps the stored one; `overrides` are fields of the config.

    Raises CheckpointError.
    """
    return prismatic_load.fill(*skeleton(directory, statistics, **overrides), device, dtype, merge)
