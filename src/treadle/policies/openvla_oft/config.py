"""The configuration of an OpenVLA-OFT policy."""

from dataclasses import dataclass
from typing import Any, ClassVar

from treadle.policies import prismatic_config, sizes
from treadle.policies.prismatic_config import PrismaticConfig


@dataclass(frozen=True)
class OpenVLAOFTConfig(PrismaticConfig):
    """All that the shapes and conventions of a policy depend on, but for the statistics."""

    kind: ClassVar[str] = "openvla_oft"

    chunk: int = 8
    """C, actions per decision."""


def from_json(raw: dict[str, Any], action_dim: int) -> OpenVLAOFTConfig:
    """The config of a published or own config.json; `action_dim` is that of the statistics.

    What published files lack is as in the official code: ALOHA's for 14 dimensions (two arms), else LIBERO's.
    """
    two_arms = {"chunk": 25, "normalization": "bounds"} if action_dim == 14 else {}
    return prismatic_config.from_json(OpenVLAOFTConfig, raw, action_dim, **two_arms)


def tiny_config(**settings: Any) -> OpenVLAOFTConfig:
    """See `prismatic_config.tiny_config`."""
    return prismatic_config.tiny_config(OpenVLAOFTConfig, **settings)


def sized_config(size: str, **facts: Any) -> OpenVLAOFTConfig:
    """See `sizes.sized_config`."""
    return sizes.sized_config(OpenVLAOFTConfig, size, **facts)
