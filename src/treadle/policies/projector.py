"""Projectors from vision features and proprioception to the width of the language model, named as published."""

from torch import Tensor, nn
from torch.nn import functional as F


class VisionProjector(nn.Module):
    """GELU between linear layers: fc1..fc3 behind two fused towers, fc1 and fc2 behind one."""

    def __init__(self, vision_width: int, width: int, fused: bool) -> None:
        super().__init__()
        hidden = 4 * vision_width if fused else width
        self.fc1 = nn.Linear(vision_width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.fc3 = nn.Linear(width, width) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """[B, S, vision_width] to [B, S, width]."""
        hidden = self.fc2(F.gelu(self.fc1(features)))
        return hidden if self.fc3 is None else self.fc3(F.gelu(hidden))


class ProprioProjector(nn.Module):
    """Proprioception [B, P] to one token [B, width]."""

    def __init__(self, proprioception_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprioception_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprioception: Tensor) -> Tensor:
        """[B, P] to [B, width]."""
        return self.fc2(F.gelu(self.fc1(proprioception)))
