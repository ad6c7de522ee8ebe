"""The configuration of an OpenVLA-OFT policy, read from the published config.json.

Published files lack a few facts (they are constants in the official code): those are kept under the extra key
`treadle`, and have the official values where it is absent.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from treadle.errors import CheckpointError, ConfigError
from treadle.policies.action_codec import BINS
from treadle.policies.statistics import Normalization

OVERRIDES = "treadle_tower_overrides"
TOWER_NAMES = ("featurizer", "fused_featurizer")


@dataclass(frozen=True, slots=True)
class OpenVLAOFTConfig:
    """All that the shapes and conventions of a policy depend on, but for the statistics."""

    text: dict[str, Any]
    """Keyword arguments of transformers' `LlamaConfig`; keys left out have its defaults."""
    towers: tuple[str, ...]
    """One or two tower ids (`timm_model_ids`)."""
    tower_overrides: dict[str, dict[str, Any]]
    """Sizes that differ from the ids' defaults, by `featurizer` and `fused_featurizer`."""
    image_size: tuple[int, int]
    pad_token_id: int
    pad_to_multiple_of: int = 64
    chunk: int = 8
    """C, actions per decision."""
    action_dim: int = 7
    """A."""
    proprioception_dim: int = 0
    """P; 0 for a policy that takes no proprioception."""
    normalization: Normalization = "quantiles"
    prompt_length: int = 64
    """Prompts are padded to this many tokens; a longer one is an error."""
    value_outputs: int = 0
    """V of the value head: 0 none, 1 per decision, C per action."""
    value_hidden: tuple[int, ...] = (512, 128)
    published: dict[str, Any] = field(default_factory=dict)
    """The config.json it was read from; keys that mean nothing here are written back."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.towers) <= 2:
            raise CheckpointError(f"config.json: timm_model_ids has {len(self.towers)} towers; allowed: 1 or 2")
        if self.value_outputs not in (0, 1, self.chunk):
            raise ConfigError(f"value_outputs: {self.value_outputs}; allowed: 0 (none), 1, {self.chunk} (the chunk)")

    @property
    def vocabulary(self) -> int:
        """Ids before the padded end; the last 256 are the action tokens."""
        return self.text["vocab_size"] - self.pad_to_multiple_of

    @property
    def width(self) -> int:
        """Width of the language model."""
        return self.text.get("hidden_size", 4096)

    @property
    def tokens(self) -> int:
        """K = C * A."""
        return self.chunk * self.action_dim


def from_json(raw: dict[str, Any], action_dim: int) -> OpenVLAOFTConfig:
    """The config of a published or own config.json; `action_dim` is that of the statistics."""
    for key in ("text_config", "timm_model_ids", "image_sizes", "pad_token_id", "pad_to_multiple_of"):
        if key not in raw:
            raise CheckpointError(f"config.json: no {key!r}; not a checkpoint of OpenVLA")
    if raw["text_config"].get("vocab_size") is None:
        raise CheckpointError("config.json: text_config has no 'vocab_size'")
    if raw.get("n_action_bins", BINS) != BINS:
        raise CheckpointError(f"config.json: n_action_bins {raw['n_action_bins']}; supported: {BINS}")
    facts = {**_official_constants(action_dim), **raw.get("treadle", {})}
    if "value_hidden" in facts:
        facts["value_hidden"] = tuple(facts["value_hidden"])
    if facts["action_dim"] != action_dim:
        raise CheckpointError(f"config.json: action_dim {facts['action_dim']}, but the statistics have {action_dim}")
    towers = tuple(raw["timm_model_ids"])
    if not raw.get("use_fused_vision_backbone", len(towers) == 2):
        towers = towers[:1]
    try:
        return OpenVLAOFTConfig(
            text=raw["text_config"],
            towers=towers,
            tower_overrides=raw.get(OVERRIDES, {}),
            image_size=(raw["image_sizes"][0], raw["image_sizes"][0]),
            pad_token_id=raw["pad_token_id"],
            pad_to_multiple_of=raw["pad_to_multiple_of"],
            published=raw,
            **facts,
        )
    except TypeError as error:
        raise CheckpointError(f"config.json: key 'treadle': {error}") from error


def to_json(config: OpenVLAOFTConfig, norm_stats: dict[str, Any]) -> dict[str, Any]:
    """config.json in the published layout."""
    names = ("chunk", "action_dim", "proprioception_dim", "normalization", "prompt_length", "value_outputs")
    names += ("value_hidden",)
    facts = {name: value for name, value in asdict(config).items() if name in names}
    return {**config.published, "norm_stats": norm_stats, "treadle": facts}


def tiny_config(
    *,
    vocabulary: int = 768,
    width: int = 64,
    layers: int = 3,
    heads: int = 4,
    mlp: int = 256,
    image_size: int = 64,
    chunk: int = 4,
    action_dim: int = 7,
    proprioception_dim: int = 0,
    tower_widths: tuple[tuple[int, ...], ...] = ((32, 64, 64, 64), (24, 48, 64, 64)),
    tower_kernel: int = 4,
    tower_group_norm: int = 0,
    prompt_length: int = 24,
    value_outputs: int = 0,
    value_hidden: tuple[int, ...] = (64,),
    initializer_range: float = 0.06,
) -> OpenVLAOFTConfig:
    """A policy that a CPU trains: convolutional towers and a small Llama; `vocabulary` as `build_tokenizer` returns."""
    pad_to = 64
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": vocabulary + pad_to,
        "pad_token_id": vocabulary,
        "initializer_range": initializer_range,
    }
    overrides = {
        name: {"widths": list(widths), "kernel_size": tower_kernel, "group_norm": tower_group_norm}
        for name, widths in zip(TOWER_NAMES, tower_widths, strict=False)
    }
    published = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "n_action_bins": BINS,
        "pad_to_multiple_of": pad_to,
        "pad_token_id": vocabulary,
        "text_config": text,
        "timm_model_ids": ["treadle_conv"] * len(tower_widths),
        "image_sizes": [image_size] * len(tower_widths),
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": len(tower_widths) == 2,
        "torch_dtype": "float32",
        OVERRIDES: overrides,
    }
    config = from_json({**published, "treadle": {"chunk": chunk, "action_dim": action_dim}}, action_dim)
    return replace(
        config,
        proprioception_dim=proprioception_dim,
        prompt_length=prompt_length,
        value_outputs=value_outputs,
        value_hidden=value_hidden,
        published=published,
    )


def _official_constants(action_dim: int) -> dict[str, Any]:
    """The official code's constants: those of ALOHA for 14 dimensions (two arms), else those of LIBERO."""
    two_arms = action_dim == 14
    return {
        "chunk": 25 if two_arms else 8,
        "action_dim": action_dim,
        "normalization": "bounds" if two_arms else "quantiles",
    }
