"""The configuration that OpenVLA and OpenVLA-OFT share, read from the published config.json.

Published files lack a few facts (they are constants in the official code): those are kept under the extra key
`treadle`, and have the official values where it is absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from treadle.errors import CheckpointError, ConfigError
from treadle.policies.prismatic.action_tokens import BINS
from treadle.policies.prismatic.statistics import Normalization

OVERRIDES = "treadle_tower_overrides"
TOWER_NAMES = ("featurizer", "fused_featurizer")
PADDING = 64
"""The rows of the vocabulary are a multiple of this; published padding adds as many."""
RESIZE = "resize-naive"
"""Height and width are resized independently; the other strategies of the official processor are in no published file.
"""
STRUCTURE = ("text", "towers", "tower_overrides", "image_size", "pad_token_id", "pad_to_multiple_of", "published")
"""Fields that the published keys hold; all others are facts under `treadle`."""


@dataclass(frozen=True)
class PrismaticConfig:
    """All that the shapes and conventions of a policy depend on, but for the statistics."""

    kind: ClassVar[str]
    """Name of the policy: that of its entry point, and under the key `treadle.policy` of own directories."""

    text: dict[str, Any]
    """Keyword arguments of transformers' `LlamaConfig`; keys left out have its defaults."""
    towers: tuple[str, ...]
    """One or two tower ids (`timm_model_ids`)."""
    tower_overrides: dict[str, dict[str, Any]]
    """Sizes that differ from the ids' defaults, by `featurizer` and `fused_featurizer`."""
    image_size: tuple[int, int]
    pad_token_id: int
    pad_to_multiple_of: int = PADDING
    chunk: int = 1
    """C, actions per decision."""
    action_dim: int = 7
    """A."""
    proprioception_dim: int = 0
    """P; 0 for a policy that takes no proprioception."""
    cameras: int = 0
    """Cameras that it has learned from; 0 where nothing says, as in published files of OpenVLA-OFT."""
    normalization: Normalization = "quantiles"
    prompt_length: int = 64
    """Prompts are padded to this many tokens; a longer one is an error."""
    center_crop: float = 1.0
    """Share of each image's area that is kept, around its centre; policies trained on random crops, as published ones
    of OpenVLA-OFT are, were evaluated with 0.9.
    """
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
        if not 0 < self.center_crop <= 1:
            raise ConfigError(f"center_crop: {self.center_crop}; allowed: above 0, at most 1 (the whole image)")

    def facts(self) -> dict[str, Any]:
        """The fields that published keys do not hold, by name."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in STRUCTURE}

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


AnyConfig = TypeVar("AnyConfig", bound=PrismaticConfig)


def from_json(config: type[AnyConfig], raw: dict[str, Any], action_dim: int, **constants: Any) -> AnyConfig:
    """The config of a published or own config.json.

    `action_dim` is that of the statistics; `constants` are facts of the official code, for published files.
    """
    for key in ("text_config", "timm_model_ids", "image_sizes", "pad_token_id", "pad_to_multiple_of"):
        if key not in raw:
            raise CheckpointError(f"config.json: no {key!r}; not a checkpoint of OpenVLA")
    if raw["text_config"].get("vocab_size") is None:
        raise CheckpointError("config.json: text_config has no 'vocab_size'")
    if raw.get("n_action_bins", BINS) != BINS:
        raise CheckpointError(f"config.json: n_action_bins {raw['n_action_bins']}; supported: {BINS}")
    facts = {"action_dim": action_dim, **constants, **raw.get("treadle", {})}
    facts.pop("policy", None)
    if "value_hidden" in facts:
        facts["value_hidden"] = tuple(facts["value_hidden"])
    if facts["action_dim"] != action_dim:
        raise CheckpointError(f"config.json: action_dim {facts['action_dim']}, but the statistics have {action_dim}")
    strategy = raw.get("image_resize_strategy", RESIZE)
    if strategy != RESIZE:
        raise CheckpointError(f"config.json: image_resize_strategy {strategy!r}; supported: {RESIZE}")
    towers = tuple(raw["timm_model_ids"])
    if not raw.get("use_fused_vision_backbone", len(towers) == 2):
        towers = towers[:1]
    try:
        return config(
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


def to_json(config: PrismaticConfig, norm_stats: dict[str, Any]) -> dict[str, Any]:
    """config.json in the published layout."""
    return {**config.published, "norm_stats": norm_stats, "treadle": {"policy": config.kind, **config.facts()}}


def override(config: AnyConfig, settings: dict[str, Any]) -> AnyConfig:
    """The config with other facts. Raises ConfigError for a setting that there is not."""
    known = config.facts()
    for name in settings:
        if name not in known:
            raise ConfigError(f"policy.options: no setting {name!r} of {config.kind}; there are: {', '.join(known)}")
    return replace(config, **settings)


def make_config(
    config: type[AnyConfig],
    *,
    vocabulary: int,
    text: dict[str, Any],
    towers: Sequence[tuple[str, dict[str, Any]]],
    image_size: int,
    **facts: Any,
) -> AnyConfig:
    """A config from nothing. `towers`: one or two ids with the sizes that differ; `facts`: the other fields."""
    text = {"model_type": "llama", **text, "vocab_size": vocabulary + PADDING, "pad_token_id": vocabulary}
    published = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "n_action_bins": BINS,
        "pad_to_multiple_of": PADDING,
        "pad_token_id": vocabulary,
        "text_config": text,
        "timm_model_ids": [tower for tower, _ in towers],
        "image_sizes": [image_size] * len(towers),
        "image_resize_strategy": RESIZE,
        "use_fused_vision_backbone": len(towers) == 2,
        "torch_dtype": "float32",
        OVERRIDES: {name: sizes for name, (_, sizes) in zip(TOWER_NAMES, towers, strict=False) if sizes},
    }
    made = from_json(config, {**published, "treadle": facts}, facts.get("action_dim", 7))
    return replace(made, published=published)


def tiny_config(
    config: type[AnyConfig],
    *,
    vocabulary: int = 768,
    width: int = 64,
    layers: int = 3,
    heads: int = 4,
    mlp: int = 256,
    image_size: int = 64,
    tower_widths: tuple[tuple[int, ...], ...] = ((32, 64, 64, 64), (24, 48, 64, 64)),
    **facts: Any,
) -> AnyConfig:
    """A policy that a CPU trains: convolutional towers and a small Llama; `vocabulary` as `build_tokenizer` returns."""
    text = {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "initializer_range": 0.06,
    }
    return make_config(
        config,
        vocabulary=vocabulary,
        text=text,
        towers=[("treadle_conv", {"widths": list(widths)}) for widths in tower_widths],
        image_size=image_size,
        **{"chunk": 4, "prompt_length": 24, "value_hidden": (64,), **facts},
    )
