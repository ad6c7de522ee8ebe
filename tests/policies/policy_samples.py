"""What the policy tests share: the official fixtures, and a tiny policy made from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from treadle.policies.openvla_oft import OpenVLAOFT, create, tiny_config
from treadle.policies.protocol import Inputs
from treadle.policies.statistics import make_statistics

INSTRUCTIONS = ["put the red cube on the white plate", "lift the ball", "put the blue ball on the tray, please"]


@dataclass(frozen=True)
class Official:
    """A tiny checkpoint in the published layout and what the official implementation computes from it."""

    directory: Path
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]

    def frames(self, observation: int, cameras: int) -> list[NDArray[np.uint8]]:
        names = self.facts["observations"][observation]["images"][:cameras]
        return [np.asarray(Image.open(self.directory / name).convert("RGB"))[None] for name in names]


def make_tiny(tokenizer: Path, **settings: Any) -> OpenVLAOFT:
    """A policy of 32 px images, chunk 2, 3 action dimensions, 4 numbers of proprioception."""
    config = tiny_config(
        **{
            "width": 32,
            "mlp": 64,
            "image_size": 32,
            "tower_widths": ((16, 16, 32),),
            "chunk": 2,
            "action_dim": 3,
            "proprioception_dim": 4,
            "value_outputs": 1,
            "prompt_length": 40,
            **settings,
        }
    )
    dimensions = config.action_dim
    statistics = make_statistics(
        "tabletop", [-2.0] * dimensions, [1.0] * dimensions, [-1.0] * 4, [1.0] * 4, [True] * (dimensions - 1) + [False]
    )
    policy = create(config, statistics, tokenizer, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Logits far enough apart, and values other than zero, that mistakes show.
        policy.language_model.lm_head.weight.mul_(8)
        if policy.value_head is not None:
            weight = policy.value_head.last.weight
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return policy


def sample_inputs(policy: OpenVLAOFT, count: int, seed: int = 0) -> Inputs:
    """Inputs of random frames with prompts of three lengths."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 1, *policy.config.image_size, 3), dtype=np.uint8)
    instructions = [INSTRUCTIONS[index % len(INSTRUCTIONS)] for index in range(count)]
    return policy.prepare(frames, instructions, rng.uniform(-1, 1, (count, 4)).astype(np.float32))
