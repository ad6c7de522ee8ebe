"""What of a published config.json is used, what has one supported value, and what is ignored on purpose."""

from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from treadle.config.section import Natural, Positive, Rate, Share
from treadle.errors import CheckpointError
from treadle.policies.prismatic.action_tokens import BINS
from treadle.policies.prismatic.image import Strategy
from treadle.policies.prismatic.prompt import PromptStyle
from treadle.tables import Table, read_table

GENERIC = frozenset(
    [
        *("architectures", "auto_map", "transformers_version", "torch_dtype", "dtype", "name_or_path", "use_cache"),
        *("attn_implementation", "attention_implementation", "is_composition", "return_dict", "torchscript"),
        *("output_hidden_states", "output_attentions", "output_scores", "return_dict_in_generate", "use_bfloat16"),
        *("bos_token_id", "sep_token_id", "decoder_start_token_id", "tokenizer_class", "prefix", "problem_type"),
        *("id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params", "chunk_size_feed_forward"),
        *("is_decoder", "is_encoder_decoder", "add_cross_attention", "cross_attention_hidden_size", "pruned_heads"),
        *("tie_encoder_decoder", "tf_legacy_loss", "gradient_checkpointing", "pretraining_tp", "initializer_range"),
        *("do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams", "num_beam_groups", "max_length"),
        *("min_length", "early_stopping", "diversity_penalty", "repetition_penalty", "length_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("suppress_tokens", "begin_suppress_tokens"),
    ]
)
"""transformers' notes, and settings of its `generate`, which is not used; any attention kernel computes the same."""

Size = Annotated[int, Field(gt=0, le=2**20)]
"""Of a layer, a vocabulary or an image; a larger one is a slip of the pen."""
TowerSize = bool | Annotated[int, Field(ge=0, le=2**16)] | list[Size]
Zero = Annotated[float, Field(ge=0, le=0)]
Plain = Annotated[
    None,
    Field(
        description="quantised weights cannot be read; take the checkpoint that they were made from, or remove the key "
        "if the weights are plain numbers"
    ),
]


class Rope(Table):
    """Rotary positions, unscaled."""

    rope_type: Literal["default"] = "default"
    type: Literal["default"] = "default"
    rope_theta: Rate | None = None


class TextConfig(Table):
    """The language model: a Llama as published. Keys left out have `LlamaConfig`'s defaults."""

    ignored: ClassVar[frozenset[str]] = GENERIC - {"initializer_range"}

    model_type: Literal["llama"] = "llama"
    vocab_size: Size
    hidden_size: Size = 4096
    intermediate_size: Size = 11008
    num_hidden_layers: Annotated[int, Field(gt=0, le=1000)] = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    rms_norm_eps: Rate = 1e-6
    max_position_embeddings: Positive = 2048
    initializer_range: Share = 0.02
    rope_theta: Rate | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    eos_token_id: Natural | list[Natural] | None = None
    pad_token_id: Annotated[int, Field(ge=-1)] | None = None
    hidden_act: Literal["silu", "swish"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    attention_dropout: Zero = 0.0
    sliding_window: None = None
    use_sliding_window: Literal[False] = False
    quantization_config: Plain = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        heads, shared = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size}: num_attention_heads {heads} must divide it")
        if heads % shared:
            raise ValueError(f"num_attention_heads {heads}: num_key_value_heads {shared} must divide it")
        if self.width_of_head % 2:
            raise ValueError(f"head_dim {self.width_of_head}: it must be even")
        if len(self._thetas()) > 1:
            raise ValueError(f"rope_theta: found {sorted(self._thetas())}; leave one")
        if not 0 <= self.stop < self.vocab_size:
            raise ValueError(f"eos_token_id: found {self.stop}; allowed: below vocab_size {self.vocab_size}")
        return self

    @property
    def width_of_head(self) -> int:
        """Of queries and keys."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def stop(self) -> int:
        """The id that ends a sequence: of a list, its first."""
        found = self.eos_token_id if self.eos_token_id not in (None, []) else 2
        return found[0] if isinstance(found, list) else cast("int", found)

    def llama(self) -> dict[str, Any]:
        """Keyword arguments of `LlamaConfig`."""
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        names += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "initializer_range")
        rope = {"rope_type": "default", "rope_theta": next(iter(self._thetas()), 10000.0)}
        padding = {} if self.pad_token_id in (None, -1) else {"pad_token_id": self.pad_token_id}
        return {
            **{name: value for name in names if (value := getattr(self, name)) is not None},
            "rope_parameters": rope,
            "eos_token_id": self.stop,
            **padding,
        }

    def _thetas(self) -> set[float]:
        given = (self.rope_theta, *(rope.rope_theta for rope in (self.rope_scaling, self.rope_parameters) if rope))
        return {theta for theta in given if theta is not None}


PROMPT_STYLES: dict[str, PromptStyle] = {
    "llama2-7b-pure": "llama2",
    "llama2-13b-pure": "llama2",
    "vicuna-v15-7b": "vicuna",
    "vicuna-v15-13b": "vicuna",
}
"""How a language model of the family was asked in training."""


class PublishedConfig(Table):
    """A config.json. `norm_stats`, `treadle` and `treadle_tower_overrides` are checked where they are used."""

    ignored: ClassVar[frozenset[str]] = GENERIC | {
        *("eos_token_id", "hidden_size", "tie_word_embeddings", "vision_backbone_id", "llm_max_length"),
        *("output_projector_states", "unnorm_key", "num_images_in_input", "add_value_head", "value_type", "vh_mode"),
        *("max_prompt_length",),
    }

    model_type: Literal["openvla"] = "openvla"
    text_config: dict[str, Any]
    timm_model_ids: Annotated[list[str], Field(min_length=1, max_length=2)]
    image_sizes: Size | Annotated[list[Size], Field(min_length=1)]
    pad_token_id: Natural
    pad_to_multiple_of: Natural
    use_fused_vision_backbone: bool | None = None
    image_resize_strategy: Strategy | None = None
    n_action_bins: Literal[256] = BINS
    llm_backbone_id: Literal["llama2-7b-pure", "llama2-13b-pure", "vicuna-v15-7b", "vicuna-v15-13b"] | None = None
    hf_llm_id: str | None = None
    arch_specifier: Annotated[str, Field(pattern="gelu-mlp$")] | None = None
    timm_override_act_layers: list[None] | None = None
    quantization_config: Plain = None
    num_action_chunks: Positive | None = None
    action_dim: Positive | None = None
    norm_stats: Any = None
    treadle: dict[str, Any] = {}
    treadle_tower_overrides: dict[Literal["featurizer", "fused_featurizer"], dict[str, TowerSize]] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.use_fused_vision_backbone and len(self.timm_model_ids) < 2:
            raise ValueError(
                f"use_fused_vision_backbone: found true; timm_model_ids {self.timm_model_ids} is one tower"
            )
        if isinstance(self.image_sizes, list) and len(self.image_sizes) < len(self.towers):
            raise ValueError(
                f"image_sizes: found {self.image_sizes}; allowed: a size for each of {self.timm_model_ids}"
            )
        if len(set(self.sizes)) > 1:
            raise ValueError(f"image_sizes: found {self.image_sizes}; allowed: the same size for both towers")
        if ("vicuna" in (self.hf_llm_id or "").lower()) != (self.prompt == "vicuna") and self.hf_llm_id:
            raise ValueError(
                f"llm_backbone_id: found {self.llm_backbone_id!r} beside hf_llm_id {self.hf_llm_id!r}; they decide on "
                "the prompt, and must name the same model"
            )
        return self

    @property
    def towers(self) -> tuple[str, ...]:
        """The ids of the towers that are used."""
        fused = self.use_fused_vision_backbone
        return tuple(self.timm_model_ids if fused or fused is None else self.timm_model_ids[:1])

    @property
    def sizes(self) -> list[int]:
        """The side of the image that each tower sees."""
        count = len(self.towers)
        return [self.image_sizes] * count if isinstance(self.image_sizes, int) else self.image_sizes[:count]

    @property
    def prompt(self) -> PromptStyle:
        """How the language model is asked; own directories name none and ask as Llama 2's."""
        return "llama2" if self.llm_backbone_id is None else PROMPT_STYLES[self.llm_backbone_id]


def read_published(raw: dict[str, Any], file: str) -> tuple[PublishedConfig, TextConfig]:
    """The settings of a config.json. Raises CheckpointError, which names `file` and the key."""
    found = read_table(PublishedConfig, raw, file)
    text = read_table(TextConfig, found.text_config, file, "text_config")
    least = found.pad_to_multiple_of + BINS
    if text.vocab_size <= least:
        raise CheckpointError(
            f"{file}: text_config.vocab_size: found {text.vocab_size}; allowed: above {least}, the action tokens and "
            "pad_to_multiple_of"
        )
    if found.pad_token_id >= text.vocab_size:
        raise CheckpointError(
            f"{file}: pad_token_id: found {found.pad_token_id}; allowed: below text_config.vocab_size {text.vocab_size}"
        )
    if text.pad_token_id not in (None, -1, found.pad_token_id):
        raise CheckpointError(
            f"{file}: text_config.pad_token_id: found {text.pad_token_id}; allowed: pad_token_id {found.pad_token_id}"
        )
    return found, text
