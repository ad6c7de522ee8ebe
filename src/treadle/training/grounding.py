"""Pre-training of perception on rendered scenes: first the towers find everything, then the policy finds what is named.

A policy without proprioception must see the robot too. Both heads are thrown away afterwards. Lengths are in units of
10 cm. Shapes: N scenes, M things on the table, S patches, W width, K action tokens, G classes of things, R numbers of
the robot (0 for a policy that is told them).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.protocol import Inputs
from treadle.simulators.protocol import Scenes

UNIT = 0.1
"""Metres per unit of the losses."""


class DetectionHead(nn.Module):
    """Each patch votes for where each class of things is, and for each number of the robot: a softmax over patches
    weighs their estimates.
    """

    def __init__(self, width: int, classes: int, robot: int) -> None:
        super().__init__()
        self._counts = (classes, robot)
        self.vote = nn.Linear(width, classes + robot)
        self.place = nn.Linear(width, 3 * classes + robot)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, S, W] to positions [N, G, 3] and the robot [N, R]."""
        classes, robot = self._counts
        weights = self.vote(features).softmax(1)
        places, numbers = self.place(features).split((3 * classes, robot), dim=-1)
        found = (weights[..., :classes, None] * places.unflatten(-1, (-1, 3))).sum(1)
        return found, (weights[..., classes:] * numbers).sum(1)


@dataclass(slots=True)
class GroundingHead:
    """Positions of the two things that the instruction names, and the robot, read wherever actions are predicted."""

    layer: nn.Linear

    def loss(self, hidden: Tensor, wanted: Tensor, robot: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss, and distance in metres [N, 2] at the last prompt token. `hidden` [N, K, W]; `wanted` [N, 2, 3];
        `robot` [N, R].
        """
        read = self.layer(hidden).float()
        found = read[..., :6].unflatten(-1, (2, 3))
        loss = _distance(found, wanted[:, None] / UNIT)
        if robot is not None:
            loss = loss + _distance(read[..., 6:], robot[:, None])
        return loss, (found[:, 0].detach() * UNIT - wanted)[..., :2].norm(dim=-1)


def robot_of(scenes: Scenes, policy: PrismaticPolicy) -> NDArray[np.float32] | None:
    """[N, R] what the policy must see of the robot, as it is not told; None where it is."""
    return None if policy.config.proprioception_dim else scenes.robot


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return F.smooth_l1_loss(found, wanted.expand_as(found), beta=0.1)


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
    robot = robot_of(scenes, policy)
    numbers = 0 if robot is None else robot.shape[1]
    head = DetectionHead(policy.config.width, scenes.class_count, numbers).to(policy.device)
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
        found, seen = head(features.float())
        classes = torch.from_numpy(scenes.classes[rows]).to(policy.device)
        wanted = torch.from_numpy(scenes.positions[rows]).to(policy.device)
        mine = found.gather(1, classes[..., None].expand(-1, -1, 3))
        loss = _distance(mine, wanted / UNIT)
        if robot is not None:
            loss = loss + _distance(seen, torch.from_numpy(robot[rows]).to(policy.device))
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
        self._robot = robot_of(scenes, policy)
        numbers = 6 if self._robot is None else 6 + self._robot.shape[1]
        self.head = GroundingHead(nn.Linear(policy.config.width, numbers).to(policy.device))
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
        robot = None if self._robot is None else torch.from_numpy(self._robot[rows]).to(self._policy.device)
        return self.head.loss(self._policy.hidden_states(inputs, tokens.to(self._policy.device)), wanted, robot)


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
