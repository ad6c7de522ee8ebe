"""OpenVLA-OFT: a policy that decodes a chunk of action tokens in parallel."""

from treadle.policies.openvla_oft.config import OpenVLAOFTConfig, sized_config, tiny_config
from treadle.policies.openvla_oft.load import MAKER, recognizes
from treadle.policies.openvla_oft.model import OpenVLAOFT

POLICY = OpenVLAOFT
create, load, skeleton = MAKER.create, MAKER.load, MAKER.skeleton

__all__ = [
    "POLICY",
    "OpenVLAOFT",
    "OpenVLAOFTConfig",
    "create",
    "load",
    "recognizes",
    "sized_config",
    "skeleton",
    "tiny_config",
]
