"""A Python that runs simulators. Imports the standard library alone, for workers import it too."""

import sys
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that simulators run in."""

    python: str
    variables: dict[str, str] = field(default_factory=dict[str, str])
    """Environment variables of its processes, beside those here."""

    @property
    def is_this(self) -> bool:
        """Whether it is the interpreter that asks."""
        return self.python == sys.executable
