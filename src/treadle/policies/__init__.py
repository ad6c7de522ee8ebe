"""Policies: the protocol, what all of them share, and a folder each."""

from treadle.policies.load import load_policy

__all__ = ["load_policy"]
