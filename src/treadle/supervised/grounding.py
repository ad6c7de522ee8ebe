"""Pre-training of perception on rendered scenes.

First vision finds every thing in a scene, then the policy finds the things that an instruction names. Both heads are
thrown away afterwards. Lengths are in units of 10 cm.
Shapes: N scenes, M things in each, Q things that an instruction names, S patches, W width, K positions that predict
actions, G classes of things.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.data.batch import TensorBatch
from treadle.data.stored_frames import StoredFrames
from treadle.policies.protocol import Policy
from treadle.simulators.protocol import Scenes

UNIT = 0.1
"""Metres per unit of the losses."""


@runtime_checkable
class Groundable(Protocol):
    """A policy whose perception can be trained apart from its actions; `inputs` are its own."""

    @property
    def width(self) -> int:
        """W, of features and hidden states."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> TensorBatch:
        """See `Policy.prepare`."""
        ...

    def encode(self, inputs: Any) -> TensorBatch:
        """See `Policy.encode`."""
        ...

    def freeze(self, vision: bool = True) -> dict[str, list[nn.Parameter]]:
        """See `Policy.freeze`."""
        ...

    def vision_parts(self) -> nn.ModuleList:
        """The modules between frames and `features`."""
        ...

    def features(self, inputs: Any) -> Tensor:
        """What vision makes of the frames [N, S, W], with gradient where enabled."""
        ...

    def instructed_states(self, inputs: Any, instructions: list[str], generator: torch.Generator) -> Tensor:
        """Hidden states [N, K, W] at the positions that predict actions, under `instructions` in place of those that
        the inputs were prepared with. Randomness comes from `generator`, on the CPU.
        """
        ...


def prepare_all(
    policy: "Groundable | Policy",
    frames: NDArray[np.uint8] | StoredFrames,
    instructions: Sequence[str],
    proprioception: NDArray[np.float32],
    *,
    encode: bool = True,
    batch: int = 512,
) -> TensorBatch:
    """All frames as inputs, as features if they are encoded; it takes the memory of `batch` frames at a time."""
    parts = []
    for start in range(0, len(frames), batch):
        rows = slice(start, start + batch)
        part = policy.prepare(frames[rows], list(instructions[rows]), proprioception[rows])
        parts.append(policy.encode(part) if encode else part)
    return parts[0].cat(parts)


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


def named_loss(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the positions `found` [N, K, Q, 3], in units, of the things that an instruction names; and the distance
    in metres [N, Q] from those `wanted` [N, Q, 3] at the first of the K positions that predict actions.
    """
    loss = F.smooth_l1_loss(found, wanted[:, None].expand_as(found) / UNIT, beta=0.1)
    return loss, (found[:, 0].detach() * UNIT - wanted)[..., :2].norm(dim=-1)


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Share of the top learning rate: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def pretrain_vision(
    policy: Groundable,
    scenes: Scenes,
    steps: int,
    batch: int,
    learning_rate: float,
    rng: np.random.Generator,
    report: Callable[[int, float, Sequence[float]], None],
    bfloat16: bool,
) -> None:
    """Train vision to find every thing in a scene. `report(step, loss, mean error [M] in metres)`."""
    head = DetectionHead(policy.width, scenes.class_count).to(policy.device)
    parameters = [*policy.vision_parts().parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        rows = rng.integers(len(scenes.frames), size=batch)
        inputs = policy.prepare(scenes.frames[rows, None], [""] * batch, scenes.proprioception[rows])
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

    Vision does not change from here on, so the scenes' features are computed once.
    """

    def __init__(self, policy: Groundable, scenes: Scenes, rng: np.random.Generator) -> None:
        self._policy = policy
        self._scenes = scenes
        self._rng = rng
        self._generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(policy.width, 3 * len(scenes.asked)).to(policy.device)
        """Reads the positions of the things that the instruction names."""
        self._inputs = prepare_all(policy, scenes.frames[:, None], [""] * len(scenes.frames), scenes.proprioception)

    def state_dict(self) -> dict[str, Any]:
        """The head, and where everything random stands."""
        return {
            "head": self.head.state_dict(),
            "scenes": self._rng.bit_generator.state,
            "noise": self._generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self.head.load_state_dict(state_dict["head"])
        self._rng.bit_generator.state = state_dict["scenes"]
        self._generator.set_state(state_dict["noise"])

    def loss(self, batch: int) -> tuple[Tensor, Tensor]:
        """The loss of a random batch, and its errors [batch, Q] in metres."""
        rows = self._rng.integers(len(self._scenes.frames), size=batch)
        instructions, named = self._scenes.ask(self._rng, rows)
        inputs = self._inputs.take(torch.from_numpy(rows))
        hidden = self._policy.instructed_states(inputs, instructions, self._generator)
        wanted = torch.from_numpy(self._scenes.positions[rows[:, None], named]).to(self._policy.device)
        return named_loss(self.head(hidden).float().unflatten(-1, (-1, 3)), wanted)


def pretrain_jointly(
    policy: Groundable,
    grounding: Grounding,
    steps: int,
    batch: int,
    learning_rate: float,
    report: Callable[[int, float, Sequence[float]], None],
) -> None:
    """Train all but vision to find what an instruction names. `report(step, loss, mean error [Q] in metres)`."""
    parameters = [*policy.freeze(vision=True)["policy"], *grounding.head.parameters()]
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
