"""The OpenVLA family: OpenVLA and OpenVLA-OFT, with what both share.

`model` is the network, `policy` what it does as a policy, `load` how a directory is read.
"""

from treadle.policies.prismatic.openvla import OpenVLA
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT

__all__ = ["OpenVLA", "OpenVLAOFT"]
