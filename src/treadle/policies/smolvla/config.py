"""What a directory of a SmolVLA says: lerobot's `config.json`, and Treadle's own settings in `treadle.json` beside it.

lerobot refuses a config.json with keys that it does not know, so Treadle's have a file of their own.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from treadle.config.section import Natural, NonNegative, Positive, Rate
from treadle.errors import CheckpointError
from treadle.policies.flow_matching.chain import Joined, Method
from treadle.policies.flow_matching.sampler import Counted, Drawn
from treadle.policies.smolvla.sizes import Sizes
from treadle.tables import Table

OWN = "treadle.json"
STATE, ACTION = "observation.state", "action"
EMPTY = "observation.images.empty_camera_"
"""Cameras that are never there: their images are masked, so they change nothing."""
_VLM, _EXPERT = "vlm_with_expert.vlm.model.", "vlm_with_expert.lm_expert."


class Feature(Table):
    """A number of what the robot shows or takes."""

    type: Literal["STATE", "VISUAL", "ACTION", "ENV"]
    shape: list[Positive]


Mode = Literal["IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"]


class Modes(Table):
    """How features are normalised, by their type."""

    ignored: ClassVar[frozenset[str]] = frozenset(["ENV"])

    VISUAL: Literal["IDENTITY"] = "IDENTITY"
    STATE: Mode = "MEAN_STD"
    ACTION: Mode = "MEAN_STD"


class Published(Table):
    """config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            # Where and how lerobot runs and publishes it.
            *("device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path"),
            *("use_cache", "compile_model", "compile_mode", "vlm_model_name"),
            # lerobot's training.
            *("freeze_vision_encoder", "train_expert_only", "train_state_proj", "scheduler_warmup_steps"),
            *("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "optimizer_grad_clip_norm"),
            *("scheduler_decay_steps", "scheduler_decay_lr"),
            # Types are those of the weights' file; padding and cameras that are not there are masked.
            *("load_vlm_weights", "pad_language_to", "empty_cameras"),
        ]
    )

    type: Literal["smolvla"]
    n_obs_steps: Literal[1] = 1
    chunk_size: Positive = 50
    """H."""
    n_action_steps: Positive = 50
    """C."""
    num_steps: Positive = 10
    """K."""
    input_features: dict[str, Feature]
    output_features: dict[str, Feature]
    normalization_mapping: Modes = Modes()
    max_state_dim: Positive = 32
    max_action_dim: Positive = 32
    resize_imgs_with_padding: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [512, 512]
    adapt_to_pi_aloha: Literal[False] = False
    use_delta_joint_actions_aloha: Literal[False] = False
    tokenizer_max_length: Positive = 48
    add_image_special_tokens: Literal[False] = False
    attention_mode: Literal["cross_attn"] = "cross_attn"
    prefix_length: Annotated[int, Field(le=0)] = -1
    num_expert_layers: Annotated[int, Field(le=0)] = -1
    num_vlm_layers: int = 16
    """0 or less: all of the language model's."""
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: Rate = 0.75
    min_period: Rate = 4e-3
    max_period: Rate = 4.0
    rtc_config: None = None
    use_peft: Literal[False] = False

    def size(self, key: str) -> int:
        """The numbers of proprioception or of actions. Raises CheckpointError."""
        features = {**self.input_features, **self.output_features}
        if key not in features or len(features[key].shape) != 1:
            raise CheckpointError(f"config.json: no feature {key!r} of one dimension; there are: {', '.join(features)}")
        return features[key].shape[0]

    def cameras(self) -> list[str]:
        """Keys of the cameras, in the order in which the network sees them."""
        return [k for k, f in self.input_features.items() if f.type == "VISUAL" and not k.startswith(EMPTY)]


class Settings(Table):
    """Treadle's own: what no published file says, or what may be chosen anew."""

    chunk: Positive
    """C of the H predicted actions are executed, then the policy looks again."""
    steps: Positive
    """K, steps from noise to actions."""
    cameras: Positive
    """Cameras that are seen: the first ones of those that the config names."""
    noise: Method = "sde"
    """How steps are made stochastic; at temperature 0 none is."""
    level: NonNegative = 0.5
    """a, of `sde` and `cps`, at temperature 1."""
    drawn: Drawn | None = None
    """Steps that are stochastic: one, drawn anew for each decision, the last, or all; none is one, and all of
    `learned`."""
    deviation: Annotated[list[Rate], Field(min_length=2, max_length=2)] = [0.08, 0.16]
    """Bounds of a learned standard deviation, in normalised units."""
    joined: Joined = "sum"
    """Log-probs of the stochastic steps are summed, or their mean is taken, which makes a ratio a root of the true."""
    counted: Counted = "executed"
    """Log-probs of the executed actions, for each position and dimension, or of all H x D numbers together."""
    trained: Literal["expert", "language"] = "expert"
    """What is trained besides the projections where vision is frozen: the expert, or the language model too."""
    head: Positive = 64
    """Width of an attention head, which no file says: that of SmolVLM2."""
    vision_head: Positive = 64
    """The same of vision; 72 where it is 1152 wide."""
    towers: list[list[Positive]] = []
    """Channels of small towers that see in place of SigLIP, for each of one or two; none is SigLIP."""
    value_outputs: Natural = 0
    """V of the value head, 0 without one."""
    value_hidden: list[Positive] = [512, 128]
    """Widths of its layers."""

    @property
    def drawn_steps(self) -> Drawn:
        """Which steps are stochastic."""
        return self.drawn or ("all" if self.noise == "learned" else "one")


def infer_sizes(shapes: Mapping[str, tuple[int, ...]], config: Published, settings: Settings) -> Sizes:
    """Sizes of a network from the shapes of its tensors. Raises CheckpointError where one is missing or does not fit
    the config.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != dimensions:
            raise CheckpointError(
                f"model.safetensors: {'no tensor' if found is None else f'shape {list(found)} of'} model.{name}; "
                "allowed: the weights of a whole SmolVLA"
            )
        return found

    def count(prefix: str) -> int:
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)}
        return len(numbers)

    def agree(key: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise CheckpointError(f"config.json: {key}: found {found}; the weights have {wanted}")

    width = shape(f"{_VLM}text_model.embed_tokens.weight", 2)[1]
    text = f"{_VLM}text_model.layers."
    queries, keys = (shape(f"{text}0.self_attn.{name}_proj.weight", 2)[0] for name in "qk")
    layers = count(text)
    expert = shape(f"{_EXPERT}norm.weight", 1)[0]
    if config.num_vlm_layers > 0:
        agree("num_vlm_layers", config.num_vlm_layers, layers)
    agree("expert_width_multiplier", int(width * config.expert_width_multiplier), expert)
    state, action = shape("state_proj.weight", 2)[1], shape("action_in_proj.weight", 2)[1]
    agree("max_state_dim", config.max_state_dim, state)
    agree("max_action_dim", config.max_action_dim, action)
    for whole in (queries, keys):
        _check_heads("head", whole, settings.head)
    if settings.towers:
        side, other = config.resize_imgs_with_padding
        agree("resize_imgs_with_padding", other, side)
        vision: dict[str, Any] = {"image": side, "towers": tuple(tuple(widths) for widths in settings.towers)}
    else:
        vision = _siglip(shape, count(f"{_VLM}vision_model.encoder.layers."), settings)
        agree("resize_imgs_with_padding", config.resize_imgs_with_padding, [vision["image"]] * 2)
    return Sizes(
        **vision,
        width=width,
        layers=layers,
        heads=queries // settings.head,
        key_heads=keys // settings.head,
        head=settings.head,
        mlp=shape(f"{text}0.mlp.gate_proj.weight", 2)[0],
        vocabulary=shape(f"{_VLM}text_model.embed_tokens.weight", 2)[0],
        expert_width=expert,
        chunk=config.chunk_size,
        state=state,
        action=action,
        self_attention_every=config.self_attn_every_n_layers,
        min_period=config.min_period,
        max_period=config.max_period,
    )


def _siglip(shape: Callable[[str, int], tuple[int, ...]], layers: int, settings: Settings) -> dict[str, Any]:
    """Sizes of vision and of the connector."""
    width, _, patch, _ = shape(f"{_VLM}vision_model.embeddings.patch_embedding.weight", 4)
    side = math.isqrt(shape(f"{_VLM}vision_model.embeddings.position_embedding.weight", 2)[0])
    if side & (side - 1):
        raise CheckpointError(f"config.json: resize_imgs_with_padding: {side} patches a side; allowed: a power of two")
    chosen = "vision_head" in settings.model_fields_set
    head = 72 if width == 1152 and not chosen else settings.vision_head
    _check_heads("vision_head", width, head)
    return {
        "image": side * patch,
        "patch": patch,
        "shuffle": math.isqrt(shape(f"{_VLM}connector.modality_projection.proj.weight", 2)[1] // width),
        "vision_width": width,
        "vision_layers": layers,
        "vision_heads": width // head,
        "vision_mlp": shape(f"{_VLM}vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
    }


def _check_heads(name: str, whole: int, part: int) -> None:
    if whole % part:
        raise CheckpointError(f"{name} {part}: the weights have attention {whole} wide; set policy.options.{name}")


def published_settings(config: Published) -> dict[str, Any]:
    """What lerobot's config says of Treadle's settings."""
    return {
        "chunk": config.n_action_steps,
        "steps": config.num_steps,
        "cameras": max(1, len(config.cameras())),
    }
