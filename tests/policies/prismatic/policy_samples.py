"""What the policy tests share: the official fixtures, and a tiny policy made from scratch."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from treadle.data import noise
from treadle.policies.load import policy_class
from treadle.policies.prismatic.config import tiny_config
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.sizes import make_statistics

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


def read_official(name: str) -> Official:
    directory = Path(__file__).parents[2] / "fixtures" / name
    with np.load(directory / "expected.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Official(directory, arrays, json.loads((directory / "expected.json").read_text()))


KINDS = ("openvla", "openvla_oft")


def make_tiny(tokenizer: Path, kind: str = "openvla_oft", **settings: Any) -> Any:
    """A policy of 32 px images, chunk 2, 3 action dimensions, 4 numbers of proprioception."""
    made = policy_class(kind)
    assert issubclass(made, PrismaticPolicy)
    config = tiny_config(
        made.config_type,
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
        },
    )
    dimensions = config.action_dim
    statistics = make_statistics(
        "tabletop", [-2.0] * dimensions, [1.0] * dimensions, [-1.0] * 4, [1.0] * 4, [True] * (dimensions - 1) + [False]
    )
    policy = made.create(config, statistics, tokenizer, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Logits far enough apart, and values other than zero, that mistakes show.
        policy.language_model.lm_head.weight.mul_(8)
        if policy.value_head is not None:
            weight = policy.value_head.last.weight
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return policy


def sample_inputs(policy: PrismaticPolicy, count: int, seed: int = 0) -> PrismaticInputs:
    """PrismaticInputs of random frames with prompts of three lengths."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 1, *policy.config.image_size, 3), dtype=np.uint8)
    instructions = [INSTRUCTIONS[index % len(INSTRUCTIONS)] for index in range(count)]
    return policy.prepare(frames, instructions, rng.uniform(-1, 1, (count, 4)).astype(np.float32))


def give_noise(monkeypatch: pytest.MonkeyPatch, numbers: torch.Tensor) -> NDArray[np.uint64]:
    """Let policies draw row b of `numbers` [B, K] with key b; returns the keys."""
    monkeypatch.setattr(noise, "uniform", lambda keys, *shape: numbers.numpy()[keys.astype(int)].reshape(-1, *shape))
    return np.arange(len(numbers), dtype=np.uint64)


def random_tokens(policy: PrismaticPolicy, count: int, seed: int = 0) -> torch.Tensor:
    """Action tokens [count, K]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(512, 768, (count, policy.config.tokens), generator=generator)


def pad_prompts(policy: PrismaticPolicy, inputs: PrismaticInputs, columns: int, left: bool) -> PrismaticInputs:
    """The same inputs with as much padding on one side as `columns` has room for."""
    ids = torch.full((len(inputs), columns), policy.config.pad_token_id)
    mask = torch.zeros(len(inputs), columns, dtype=torch.bool)
    for row, (prompt, there) in enumerate(zip(inputs.input_ids, inputs.attention_mask, strict=True)):
        prompt = prompt[there]
        place = slice(columns - len(prompt), columns) if left else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, True
    return replace(inputs, input_ids=ids, attention_mask=mask)
