"""The configuration that OpenVLA and OpenVLA-OFT share, read from the published config.json.

Published files lack a few facts (they are constants in the official code): those are kept under the extra key
`treadle`, and have the official values where it is absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from treadle.config.section import Natural, Positive
from treadle.errors import CheckpointError, ConfigError
from treadle.policies.prismatic.action_tokens import BINS
from treadle.policies.prismatic.image import NAIVE, Resize
from treadle.policies.prismatic.prompt import PromptStyle
from treadle.policies.prismatic.published import read_published
from treadle.policies.prismatic.statistics import Normalization
from treadle.reading import brief
from treadle.tables import check_fields

CONFIG = "config.json"
OVERRIDES = "treadle_tower_overrides"
TOWER_NAMES = ("featurizer", "fused_featurizer")
PADDING = 64
"""The rows of the vocabulary are a multiple of this; published padding adds as many."""
VICUNA_LENGTH = 256
"""Room for Vicuna's longer prompt."""
STRUCTURE = (
    *("text", "towers", "tower_overrides", "image_size", "pad_token_id", "pad_to_multiple_of", "prompt", "published"),
)
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
    prompt: PromptStyle = "llama2"
    """How the language model is asked."""
    chunk: Positive = 1
    """C, actions per decision."""
    action_dim: Positive = 7
    """A."""
    proprioception_dim: Natural = 0
    """P; 0 for a policy that takes no proprioception."""
    cameras: Natural = 0
    """Cameras that it has learned from; 0 where nothing says, as in published files of OpenVLA-OFT."""
    normalization: Normalization = "quantiles"
    prompt_length: Positive = 64
    """Prompts are padded to this many tokens; a longer one is an error."""
    center_crop: Annotated[
        float, Field(gt=0, le=1, description="the share of the image's area that is kept: 0.9 as published, 1 is all")
    ] = 1.0
    """Share of each image's area that is kept, around its centre; policies trained on random crops, as published ones
    of OpenVLA-OFT are, were evaluated with 0.9.
    """
    resize: Resize = "pillow"
    """How frames come to `image_size`: see `image.Resize`."""
    value_outputs: Natural = 0
    """V of the value head: 0 none, 1 per decision, C per action."""
    value_hidden: tuple[Positive, ...] = (512, 128)
    published: dict[str, Any] = field(default_factory=dict)
    """The config.json it was read from; keys that mean nothing here are written back."""

    def __post_init__(self) -> None:
        check_fields(self, tuple(self.facts()), ConfigError)
        if self.value_outputs not in (0, 1, self.chunk):
            raise ConfigError(f"value_outputs: {self.value_outputs}; allowed: 0 (none), 1, {self.chunk} (the chunk)")

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
        return self.text["hidden_size"]

    @property
    def tokens(self) -> int:
        """K = C * A."""
        return self.chunk * self.action_dim


AnyConfig = TypeVar("AnyConfig", bound=PrismaticConfig)


def from_json(config: type[AnyConfig], raw: dict[str, Any], action_dim: int, **constants: Any) -> AnyConfig:
    """The config of a published or own config.json.

    `action_dim` is that of the statistics; `constants` are facts of the official code, for published files. Raises
    CheckpointError.
    """
    found, text = read_published(raw, CONFIG)
    facts = {"action_dim": found.action_dim or action_dim, **constants, **_tuples(found.treadle)}
    facts.pop("policy", None)
    if found.prompt == "vicuna":
        facts.setdefault("prompt_length", VICUNA_LENGTH)
    if facts["action_dim"] != action_dim:
        raise CheckpointError(f"{CONFIG}: action_dim {facts['action_dim']}, but the statistics have {action_dim}")
    try:
        return config(
            text=text.llama(),
            towers=found.towers,
            tower_overrides={str(name): sizes for name, sizes in found.treadle_tower_overrides.items()},
            image_size=(found.sizes[0], found.sizes[0]),
            pad_token_id=found.pad_token_id,
            pad_to_multiple_of=found.pad_to_multiple_of,
            prompt=found.prompt,
            published=raw,
            **facts,
        )
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{CONFIG}: key 'treadle': {brief(error)}") from error


def to_json(config: PrismaticConfig, norm_stats: dict[str, Any]) -> dict[str, Any]:
    """config.json in the published layout."""
    return {**config.published, "norm_stats": norm_stats, "treadle": {"policy": config.kind, **config.facts()}}


def override(config: AnyConfig, settings: dict[str, Any]) -> AnyConfig:
    """The config with other facts. Raises ConfigError for a setting that there is not."""
    known = config.facts()
    for name in settings:
        if name not in known:
            raise ConfigError(f"policy.options: no setting {name!r} of {config.kind}; there are: {', '.join(known)}")
    try:
        return replace(config, **_tuples(settings))
    except ConfigError as error:
        raise ConfigError(f"policy.options.{error}") from None


def _tuples(facts: dict[str, Any]) -> dict[str, Any]:
    """Lists, which is what files have, as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


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
        "image_resize_strategy": NAIVE,
        "use_fused_vision_backbone": len(towers) == 2,
        "torch_dtype": "float32",
        OVERRIDES: {name: sizes for name, (_, sizes) in zip(TOWER_NAMES, towers, strict=False) if sizes},
    }
    return replace(from_json(config, published, facts.get("action_dim", 7)), **facts)


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
