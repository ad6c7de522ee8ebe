"""Making an OpenVLA-OFT policy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from treadle.errors import CheckpointError
from treadle.policies.film import film_rank
from treadle.policies.openvla_oft.config import OpenVLAOFTConfig, from_json
from treadle.policies.openvla_oft.model import OpenVLAOFT
from treadle.policies.parts import PUBLISHED, find_part, read_part
from treadle.policies.prismatic_config import override
from treadle.policies.prismatic_load import Directory, Maker, published_proprioception


def recognizes(directory: Path, config: dict[str, Any]) -> bool:
    """Published parts of OpenVLA-OFT lie there, or it is an own directory that names no other policy.

    A policy with discrete actions alone has no such parts.
    """
    return "treadle" in config or any(any(directory.glob(pattern)) for pattern in PUBLISHED.values())


def configure(found: Directory, overrides: dict[str, Any]) -> OpenVLAOFTConfig:
    """See `Maker.configure`.

    What lies in files of its own is used where there is such a file: a proprioception projector
    (`proprioception_dim=0` leaves it out), an L1 action head (`head="tokens"` leaves it out), towers with FiLM.
    """
    config = from_json(found.config, found.action_dim)
    parts: dict[str, Any] = {}
    if not config.proprioception_dim:
        parts["proprioception_dim"] = published_proprioception(found.path)
    head = find_part(found.path, "action_head")
    if head is not None and "head" not in found.config.get("treadle", {}):
        parts["head"] = "laplace"
    if find_part(found.path, "vision_backbone") is not None:
        parts |= {"film": True, "film_rank": film_rank(read_part(found.path, "vision_backbone")[0])}
    config = override(replace(config, **parts), overrides)
    if config.head != "tokens" and head is None:
        raise CheckpointError(f"{found.path}: head {config.head!r} needs an action_head file, and there is none")
    return config


MAKER = Maker(OpenVLAOFT, configure)
