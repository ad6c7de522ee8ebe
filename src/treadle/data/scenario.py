"""The identity of one episode."""

from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "evaluation"]
"""Scenarios of one suite come in two disjoint sets: those that training may see, and those kept for evaluation."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One episode's identity: what is on the scene, where, and what is asked.

    Equal scenarios give the same first observation and, for the same actions, the same outcome, in any slot,
    lane or batch. Hashable, and cheap to send to another process. Names alone make two equal: a simulator may word the
    instruction only once the scene stands (`simulators.protocol.Wording`).
    """

    simulator: str
    suite: str
    """In distribution (`train`) or an out-of-distribution setting, `axis/setting`, as in `vision/texture`."""
    task: str
    split: Split
    index: int
    """Position in the enumeration of (suite, split); together with them it seeds everything random in the scene."""
    instruction: str = field(compare=False)

    @property
    def id(self) -> str:
        """A readable unique name, `tabletop/vision/texture/evaluation/000012`."""
        return f"{self.simulator}/{self.suite}/{self.split}/{self.index:06d}"
