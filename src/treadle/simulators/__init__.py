"""Simulators: the protocol, the host that steps any of them, and a folder each. Imports numpy, never torch."""
