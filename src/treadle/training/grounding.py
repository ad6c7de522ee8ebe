"""Pre-training of perception on rendered scenes: first the towers find everything, then the policy finds what is named.

Both heads are thrown away afterwards. Lengths are in units of 10 cm.
Shapes: N scenes, M things on the table, S patches, W width, K action tokens, G classes of things.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.protocol import Inputs
from treadle.simulators.protocol import Scenes

UNIT = 0.1
"""Metres per unit of the losses."""


class DetectionHead(nn.Module):
    """Each patch votes for where each class of things is: a softmax over patches weighs their estimates."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.vote = nn.Linear(width, classes)
        self.place = nn.Linear(width, 3 * classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N, S, W] to positions [N, G, 3]."""
        weights = self.vote(features).softmax(1)
        places = self.place(features).unflatten(-1, (-1, 3))
        return (weights[..., None] * places).sum(1)


@dataclass(slots=True)
class GroundingHead:
    """Positions of the two things that the instruction names, read at every position that predicts actions."""

    layer: nn.Linear

    def loss(self, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and distance in metres [N, 2] at the last prompt token. `hidden` [N, K, W]; `wanted` [N, 2, 3]."""
        found = self.layer(hidden).float().unflatten(-1, (2, 3))
        loss = F.smooth_l1_loss(found, wanted[:, None].expand_as(found) / UNIT, beta=0.1)
        return loss, (found[:, 0].detach() * UNIT - wanted)[..., :2].norm(dim=-1)


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Share of the top learning rate: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def pretrain_towers(
    policy: PrismaticPolicy,
    scenes: Scenes,
    steps: int,
    batch: int,
    learning_rate: float,
    rng: np.random.Generator,
    report: Callable[[int, float, Sequence[float]], None],
    bfloat16: bool,
) -> None:
    """Train towers and projector to find every thing on the table. `report(step, loss, mean error in metres)`."""
    head = DetectionHead(policy.config.width, scenes.class_count).to(policy.device)
    parameters = [*policy.vision_backbone.parameters(), *policy.projector.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    blank = policy.prepare(scenes.frames[:1, None], [""], scenes.proprioception[:1])
    for step in range(steps):
        rows = rng.integers(len(scenes.frames), size=batch)
        inputs = Inputs(
            blank.input_ids, blank.attention_mask, frames=torch.from_numpy(scenes.frames[rows, None]).to(policy.device)
        )
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=bfloat16):
            features = policy.features(inputs)
        found = head(features.float())
        classes = torch.from_numpy(scenes.classes[rows]).to(policy.device)
        wanted = torch.from_numpy(scenes.positions[rows]).to(policy.device)
        mine = found.gather(1, classes[..., None].expand(-1, -1, 3))
        loss = F.smooth_l1_loss(mine, wanted / UNIT, beta=0.1)
        _descend(optimizer, loss, learning_rate * cosine(step, steps))
        error = (mine.detach() * UNIT - wanted)[..., :2].norm(dim=-1).mean(0)
        report(step, float(loss.detach()), error.tolist())


class Grounding:
    """Batches of scenes with instructions, and their loss, for the joint stage and to mix into imitation.

    The towers stand still from here on, so the scenes' features are computed once.
    """

    def __init__(self, policy: PrismaticPolicy, scenes: Scenes, rng: np.random.Generator, batch: int = 512) -> None:
        self._policy = policy
        self._scenes = scenes
        self._rng = rng
        self._generator = torch.Generator().manual_seed(0)
        self.head = GroundingHead(nn.Linear(policy.config.width, 6).to(policy.device))
        parts = []
        for start in range(0, len(scenes.frames), batch):
            frames = scenes.frames[start : start + batch, None]
            proprioception = scenes.proprioception[start : start + batch]
            parts.append(policy.encode(policy.prepare(frames, [""] * len(frames), proprioception)))
        self._inputs = Inputs.cat(parts)

    def loss(self, batch: int) -> tuple[Tensor, Tensor]:
        """The loss of a random batch, and its errors [batch, 2] in metres (object, plate)."""
        rows = self._rng.integers(len(self._scenes.frames), size=batch)
        instructions, named = self._scenes.ask(self._rng, rows)
        inputs = self._inputs.take(torch.from_numpy(rows))
        ids, mask = self._policy.prompts.encode(instructions)
        inputs = replace(inputs, input_ids=ids.to(self._policy.device), attention_mask=mask.to(self._policy.device))
        wanted = torch.from_numpy(self._scenes.positions[rows[:, None], named]).to(self._policy.device)
        # Random actions, for a policy that reads its own: whatever it did, it shall know where things are.
        codec, count = self._policy.codec, self._policy.config.tokens
        tokens = torch.randint(codec.first_id, codec.vocabulary, (batch, count), generator=self._generator)
        return self.head.loss(self._policy.hidden_states(inputs, tokens.to(self._policy.device)), wanted)


def pretrain_jointly(
    policy: PrismaticPolicy,
    grounding: Grounding,
    steps: int,
    batch: int,
    learning_rate: float,
    report: Callable[[int, float, Sequence[float]], None],
) -> None:
    """Train the language model to find what an instruction names."""
    parameters = [*policy.freeze(vision=True)["policy"], *grounding.head.layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        loss, error = grounding.loss(batch)
        _descend(optimizer, loss, learning_rate * cosine(step, steps))
        report(step, float(loss.detach()), error.mean(0).tolist())


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
