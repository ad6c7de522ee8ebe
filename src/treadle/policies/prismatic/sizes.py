"""Sizes of the OpenVLA family, for policies that no directory holds."""

import tempfile
from pathlib import Path
from typing import Any

from treadle.errors import ConfigError
from treadle.policies import checkpoint
from treadle.policies.prismatic.config import AnyConfig, make_config, override, tiny_config
from treadle.policies.prismatic.preprocessor import PREPROCESSOR, make_preprocessor
from treadle.policies.prismatic.prompt import build_tokenizer

DINOV2, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"

TEXT_TOKENS = {"tiny": 512, "200m": 31744, "7b": 31744}
"""Ids before the 256 action tokens, for `build_tokenizer`."""

_SIZES: dict[str, dict[str, Any]] = {
    "200m": {
        "text": {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
        },
        "towers": (
            (DINOV2, {"embed_dim": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536}),
            (SIGLIP, {"embed_dim": 512, "depth": 12, "num_heads": 8, "mlp_dim": 2048}),
        ),
    },
    "7b": {"text": {}, "towers": ((DINOV2, {}), (SIGLIP, {}))},
}
"""Beside `tiny`, which has convolutional towers. What is left out of 7b's `text` is as LlamaConfig has it."""


def sized_config(config: type[AnyConfig], size: str, *, layers: int | None = None, **facts: Any) -> AnyConfig:
    """The config of a size; `facts` are its other fields. `layers`: decoder layers, in place of the size's own.

    Raises ConfigError for a size that is not known.
    """
    if size == "tiny":
        return tiny_config(config, **({} if layers is None else {"layers": layers}), **facts)
    if size not in _SIZES:
        raise ConfigError(f"size: {size!r}; allowed: {', '.join(TEXT_TOKENS)}")
    sizes = dict(_SIZES[size])
    if layers is not None:
        sizes["text"] = {**sizes["text"], "num_hidden_layers": layers}
    return make_config(config, vocabulary=TEXT_TOKENS[size] + 256, image_size=224, **sizes, **facts)


def make_statistics(
    key: str,
    action_low: list[float],
    action_high: list[float],
    proprioception_low: list[float],
    proprioception_high: list[float],
    action_mask: list[bool] | None = None,
) -> dict[str, Any]:
    """`norm_stats` of one data set from the ranges alone, for a policy made from scratch.

    `action_mask` False leaves a dimension unscaled, so that its tokens cover [-1, 1] themselves.
    """

    def numbers(low: list[float], high: list[float]) -> dict[str, Any]:
        return {"q01": low, "q99": high, "min": low, "max": high}

    action = {**numbers(action_low, action_high), "mask": action_mask or [True] * len(action_low)}
    return {key: {"action": action, "proprio": numbers(proprioception_low, proprioception_high)}}


def describe_size(
    made: type[AnyConfig], size: str, facts: dict[str, Any]
) -> tuple[AnyConfig, dict[str, Any], dict[str, bytes]]:
    """Config, statistics and files of a policy of a size; `facts` override those of its config. Raises ConfigError."""
    config = override(sized_config(made, size), facts)
    action, state = [1.0] * config.action_dim, [1.0] * config.proprioception_dim
    statistics = make_statistics(size, [-x for x in action], action, [-x for x in state], state)
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer(["move"], Path(folder), TEXT_TOKENS[size])
        files = checkpoint.read_carried(Path(folder))
    files[PREPROCESSOR] = make_preprocessor(config.image_size, len(config.towers))
    return config, statistics, files
