"""Continuous actions: the published L1 regression head, and a density around what it regresses.

Minimising an L1 loss is maximum likelihood under a Laplace density, so a scale per dimension is all that such a head
lacks to be trained by policy gradients. Everything here is in normalised units, where actions span [-1, 1].
Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A entries of a chunk, W width.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from treadle.errors import ConfigError
from treadle.policies.sampling import Sampling

Density = Literal["laplace", "gaussian"]


class ResidualBlock(nn.Module):
    """Layer norm, linear, ReLU, and the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., width]."""
        return x + self.ffn(x)


class ResidualMLP(nn.Module):
    """The body of the regression head, named as published."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class RegressionHead(nn.Module):
    """The A hidden states of an action, side by side, give its A values."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.model = ResidualMLP(width * action_dim, width, action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B, K, W] to normalised actions [B, K], float32."""
        actions = hidden.unflatten(1, (-1, self.action_dim)).flatten(2)
        return self.model(actions.to(self.model.fc1.weight.dtype)).float().flatten(1)


class ActionScale(nn.Module):
    """A learned scale of each action dimension, the same for every action of a chunk; float32."""

    def __init__(self, action_dim: int, initial: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((action_dim,), math.log(initial)))

    def forward(self, actions: int) -> Tensor:
        """Scales [K] of a chunk of so many actions."""
        return self.log_scale.exp().repeat(actions)


def draw(density: Density, centre: Tensor, scale: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """Values [B, K] float32 around `centre` [B, K], by inverse distribution function of `noise` [B, K] in [0, 1).

    `scale` [K] is the Laplace density's b or the Gaussian's standard deviation; the temperature multiplies it, and 0
    takes the centre.
    """
    check(sampling)
    if sampling.temperature == 0:
        return centre
    if noise is None:
        noise = torch.rand(centre.shape, device=centre.device)
    # Away from 0, whose value is minus infinity, by half the step between two float32 numbers drawn in [0, 1).
    u = noise.double().clamp(2**-25, 1 - 2**-25) - 0.5
    laplace = density == "laplace"
    standard = -u.sign() * torch.log1p(-2 * u.abs()) if laplace else math.sqrt(2) * torch.erfinv(2 * u)
    return (centre.double() + scale.double() * sampling.temperature * standard).float()


def log_prob(density: Density, values: Tensor, centre: Tensor, scale: Tensor, sampling: Sampling) -> Tensor:
    """Log-density [B, K] of `values` [B, K]; that of temperature 1 for temperature 0, as for tokens."""
    check(sampling)
    scale = scale * (sampling.temperature or 1.0)
    distance = (values - centre) / scale
    if density == "laplace":
        return -distance.abs() - scale.log() - math.log(2)
    return -0.5 * distance**2 - scale.log() - 0.5 * math.log(2 * math.pi)


def entropy(density: Density, scale: Tensor, sampling: Sampling) -> Tensor:
    """Differential entropy [K] in nats."""
    spread = (scale * (sampling.temperature or 1.0)).log()
    return spread + (1 + math.log(2) if density == "laplace" else 0.5 * math.log(2 * math.pi * math.e))


def check(sampling: Sampling) -> None:
    """Raises ConfigError for what a density cannot be sampled with."""
    if sampling.top_k or sampling.top_p != 1:
        raise ConfigError(
            f"sampling.top_k {sampling.top_k}, top_p {sampling.top_p}: this policy regresses actions, and a density "
            "has no most likely tokens; use top_k=0 and top_p=1, or load it with head='tokens'"
        )
