"""What a check of `benchmarks.gpu` is given, and how it says what it found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from treadle.files import to_json, write_atomically


class SkippedError(Exception):
    """A check that this machine lacks something for; the message says what."""


class FailedError(Exception):
    """A figure that is not as it must be; the message names it."""


@dataclass(slots=True)
class Task:
    """One check at work, in a process of its own."""

    cpu: bool
    """A rehearsal: tiny sizes on the CPU."""
    folder: Path
    """Scratch of all checks of a call."""
    file: Path
    """Where its figures go, at once, so that those of a check that is ended are kept."""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The first GPU, or the CPU."""
        return torch.device("cpu") if self.cpu else torch.device("cuda", 0)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights of large policies."""
        return torch.float32 if self.cpu else torch.bfloat16

    @property
    def size(self) -> str:
        """Of large policies."""
        return "tiny" if self.cpu else "7b"

    def note(self, **figures: Any) -> None:
        """Keep figures."""
        self.figures |= figures
        self.write()

    def write(self, **found: Any) -> None:
        """Write what was found beside the figures: `summary` or `skipped`."""
        write_atomically(self.file, to_json({"figures": self.figures, **found}))

    def require(self, holds: bool, otherwise: str) -> None:
        """Raise FailedError unless it holds."""
        if not holds:
            raise FailedError(otherwise)
