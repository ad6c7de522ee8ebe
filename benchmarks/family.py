"""The policies that are measured with random weights."""

from treadle.errors import ConfigError
from treadle.policies.prismatic import OpenVLA, OpenVLAOFT
from treadle.policies.prismatic.policy import PrismaticPolicy

FAMILY: dict[str, type[PrismaticPolicy]] = {policy.kind: policy for policy in (OpenVLA, OpenVLAOFT)}
"""By name."""


def family_class(kind: str) -> type[PrismaticPolicy]:
    """The class of a name. Raises ConfigError."""
    if kind not in FAMILY:
        raise ConfigError(f"kind of policy: {kind!r}; allowed: {', '.join(FAMILY)}")
    return FAMILY[kind]
