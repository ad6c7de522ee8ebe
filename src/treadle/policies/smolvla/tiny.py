"""A tiny flow policy from nothing, of the same classes: small towers for eyes, no padding, H twice C."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from treadle.errors import ConfigError
from treadle.policies.smolvla.config import ACTION, STATE, Published, Settings
from treadle.policies.smolvla.directory import Directory, new_scales
from treadle.policies.smolvla.processors import Processors
from treadle.policies.smolvla.prompt import FILES
from treadle.policies.smolvla.sizes import Sizes

if TYPE_CHECKING:
    from treadle.config.supervised import TinyModelConfig
    from treadle.simulators.protocol import SimulatorSpec

PROMPT = 12
"""Ids of a prompt."""
STEPS = 4
"""K."""
_UNKNOWN, _PADDING = "<unk>", "<pad>"


def describe_tiny(
    model: "TinyModelConfig", spec: "SimulatorSpec", texts: Iterable[str], statistics: dict[str, Any]
) -> Directory:
    """The directory that the policy will have, without weights. Raises ConfigError for images that are not square."""
    if spec.height != spec.width:
        raise ConfigError(f"simulator: images of {spec.height} x {spec.width}; a tiny policy takes square ones")
    tokenizer, words = build_tokenizer(texts)
    cameras = {f"observation.images.{name}": feature("VISUAL", 3, spec.height, spec.width) for name in spec.cameras}
    config: dict[str, Any] = {
        "type": "smolvla",
        "chunk_size": 2 * model.chunk,
        "n_action_steps": model.chunk,
        "num_steps": STEPS,
        "input_features": {STATE: feature("STATE", spec.proprioception_dim), **cameras},
        "output_features": {ACTION: feature("ACTION", spec.action_dim)},
        "max_state_dim": spec.proprioception_dim,
        "max_action_dim": spec.action_dim,
        "resize_imgs_with_padding": [spec.height, spec.width],
        "tokenizer_max_length": PROMPT,
        "num_vlm_layers": model.layers,
        "expert_width_multiplier": 1.0,
    }
    published = Published.model_validate(config)
    head = model.width // model.heads
    settings = Settings(
        chunk=model.chunk,
        steps=STEPS,
        cameras=len(spec.cameras),
        head=head,
        towers=[list(widths) for widths in model.tower_widths],
        trained="language",
        value_hidden=[64],
    )
    sizes = Sizes(
        image=spec.height,
        towers=model.tower_widths,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        key_heads=model.heads,
        head=head,
        mlp=model.mlp,
        vocabulary=words,
        expert_width=model.width,
        chunk=2 * model.chunk,
        state=spec.proprioception_dim,
        action=spec.action_dim,
    )
    processors = Processors("none", {}, published.normalization_mapping, 1e-8, PROMPT, {})
    scales = new_scales(processors, published, spec.name, statistics)
    return Directory(config, published, settings, sizes, processors, scales, tokenizer, {})


def feature(kind: str, *shape: int) -> dict[str, Any]:
    """A feature of config.json."""
    return {"type": kind, "shape": list(shape)}


def build_tokenizer(texts: Iterable[str]) -> tuple[dict[str, bytes], int]:
    """Files of a tokenizer of the words of `texts`, and how many there are."""
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = {piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())}
    vocabulary = {word: index for index, word in enumerate([_UNKNOWN, _PADDING, *sorted(words)])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=_UNKNOWN)
    special = {"unk_token": _UNKNOWN, "pad_token": _PADDING}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    contents = (tokenizer.to_str(pretty=True), json.dumps(settings, indent=2), json.dumps(special, indent=2))
    return {name: content.encode() for name, content in zip(FILES, contents, strict=True)}, len(vocabulary)
