"""Making an OpenVLA policy."""

from pathlib import Path
from typing import Any

from treadle.policies.openvla.config import OpenVLAConfig
from treadle.policies.openvla.model import OpenVLA
from treadle.policies.prismatic_config import from_json, override
from treadle.policies.prismatic_load import Directory, Maker


def recognizes(_directory: Path, config: dict[str, Any]) -> bool:
    """A published directory; it is asked after those that have more to show."""
    return "treadle" not in config


def configure(found: Directory, overrides: dict[str, Any]) -> OpenVLAConfig:
    """See `Maker.configure`."""
    return override(from_json(OpenVLAConfig, found.config, found.action_dim), overrides)


MAKER = Maker(OpenVLA, configure)
