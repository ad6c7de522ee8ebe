"""Value heads that RLinf and RL4VLA put among the main weights: three layers with GELU between, on the hidden state of
the last prompt token, as Treadle's own. The last layer has no bias there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from treadle.policies import checkpoint
from treadle.policies.tensors import Stored

PREFIX = "value_head."
"""In front of their names."""
_LAYERS = (("mlp.0", "mlp.2", "mlp.4"), ("head_l1", "head_l2", "head_l3"))
"""What the layers are called: by RLinf, and by RL4VLA."""
_OWN = ("body.0", "body.2", "last")


@dataclass(frozen=True, slots=True)
class PublishedHead:
    """A value head whose tensors are all there."""

    tensors: dict[str, Stored]
    """By the names of Treadle's."""
    width: int
    """Of the hidden state that it reads."""
    hidden: tuple[int, ...]
    """Widths of its layers."""
    outputs: int
    """Values of a decision."""

    def read(self, weights: Path, device: torch.device) -> dict[str, Tensor]:
        """Its tensors in float32 by the names of Treadle's; `weights` is the directory of the main weights."""
        found = checkpoint.read_weights(weights, torch.float32, device, self.tensors)
        return {"last.bias": torch.zeros(self.outputs, device=device), **found}


def find_value_head(stored: Mapping[str, Stored]) -> PublishedHead | None:
    """The head among tensors whose names begin with `PREFIX`; None where some are missing, or others are there."""
    for layers in _LAYERS:
        names = {
            f"{own}.{part}": f"{PREFIX}{layer}.{part}"
            for own, layer in zip(_OWN, layers, strict=True)
            for part in ("weight", "bias")
        }
        tensors = {own: stored[name] for own, name in names.items() if name in stored}
        if len(tensors) != len(stored) or names.keys() - tensors.keys() - {"last.bias"}:
            continue
        first, second, last = (tensors[f"{own}.weight"].shape for own in _OWN)
        if len(first) == len(second) == len(last) == 2:
            return PublishedHead(tensors, first[1], (first[0], second[0]), last[0])
    return None
