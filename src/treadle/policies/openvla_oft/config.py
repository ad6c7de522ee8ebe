"""The configuration of an OpenVLA-OFT policy."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from treadle.errors import ConfigError
from treadle.policies import prismatic_config, sizes
from treadle.policies.prismatic_config import PrismaticConfig

Head = Literal["tokens", "laplace", "gaussian"]
HEADS: tuple[Head, ...] = ("tokens", "laplace", "gaussian")


@dataclass(frozen=True)
class OpenVLAOFTConfig(PrismaticConfig):
    """All that the shapes and conventions of a policy depend on, but for the statistics."""

    kind: ClassVar[str] = "openvla_oft"

    chunk: int = 8
    """C, actions per decision."""
    head: Head = "tokens"
    """What decides on actions: discrete tokens, or a density around what the L1 regression head says."""
    initial_scale: float = 0.1
    """Scale of that density where a checkpoint has none yet, in normalised units: actions span [-1, 1]."""
    film: bool = False
    """The instruction modulates the vision towers (FiLM)."""
    film_rank: int = 0
    """Rank of the adapters in the published file of such towers, which the official code expects there; 0 none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in HEADS:
            raise ConfigError(f"head: {self.head!r}; allowed: {', '.join(HEADS)}")
        if not self.initial_scale > 0:
            raise ConfigError(f"initial_scale: {self.initial_scale}; it must be above 0")


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
