"""Policies: the protocol, what all of them share, and a folder each."""
