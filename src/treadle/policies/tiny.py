"""A policy from nothing, for what a simulator shows and takes."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.policies.load import policy_module
from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.prompt import build_tokenizer

if TYPE_CHECKING:
    from treadle.config.schema import TinyModelConfig
    from treadle.simulators.protocol import SimulatorSpec


def create_tiny(
    model: "TinyModelConfig",
    spec: "SimulatorSpec",
    texts: Iterable[str],
    statistics: dict[str, Any],
    *,
    seed: int = 0,
    **facts: Any,
) -> PrismaticPolicy:
    """A policy with random weights, and a tokenizer of the words of `texts`.

    `statistics` are of one data set; `facts` are further fields of its config.
    """
    module = policy_module(model.kind)
    with tempfile.TemporaryDirectory() as folder:
        config = module.tiny_config(
            vocabulary=build_tokenizer(texts, Path(folder)),
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            mlp=model.mlp,
            image_size=spec.height,
            chunk=model.chunk,
            action_dim=spec.action_dim,
            proprioception_dim=spec.proprioception_dim,
            tower_widths=model.tower_widths,
            **facts,
        )
        return module.create(config, {spec.name: statistics}, Path(folder), seed=seed)
