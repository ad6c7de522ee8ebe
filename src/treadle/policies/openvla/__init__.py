"""OpenVLA: a policy that decodes action tokens one after another."""

from treadle.policies.openvla.config import OpenVLAConfig, sized_config, tiny_config
from treadle.policies.openvla.load import MAKER, recognizes
from treadle.policies.openvla.model import OpenVLA

POLICY = OpenVLA
create, load, skeleton = MAKER.create, MAKER.load, MAKER.skeleton

__all__ = [
    "POLICY",
    "OpenVLA",
    "OpenVLAConfig",
    "create",
    "load",
    "recognizes",
    "sized_config",
    "skeleton",
    "tiny_config",
]
