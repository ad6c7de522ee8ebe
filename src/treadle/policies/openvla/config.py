"""The configuration of an OpenVLA policy."""

from dataclasses import dataclass
from typing import Any, ClassVar

from treadle.policies import prismatic_config, sizes
from treadle.policies.prismatic_config import PrismaticConfig


@dataclass(frozen=True)
class OpenVLAConfig(PrismaticConfig):
    """All that the shapes and conventions of a policy depend on, but for the statistics. Published ones have C = 1."""

    kind: ClassVar[str] = "openvla"


def tiny_config(**settings: Any) -> OpenVLAConfig:
    """See `prismatic_config.tiny_config`."""
    return prismatic_config.tiny_config(OpenVLAConfig, **settings)


def sized_config(size: str, **facts: Any) -> OpenVLAConfig:
    """See `sizes.sized_config`."""
    return sizes.sized_config(OpenVLAConfig, size, **facts)
