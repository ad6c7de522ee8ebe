"""Which parts of a SmolVLA are trained, by the beginnings of their parameters' names."""

from treadle.policies.smolvla.directory import Directory
from treadle.policies.smolvla.sizes import Sizes

_LANGUAGE = "model.vlm_with_expert.vlm."
_VISION = ("model.vision_model.", "model.connector.", "model.eyes.")


def frozen_parts(found: Directory, *, vision: bool) -> tuple[str, ...]:
    """What is not trained: what is unused, and with `vision` also vision, and the language model unless the settings
    say otherwise.
    """
    unused = tuple(_unused_parts(found.sizes))
    if not vision:
        return unused
    if found.settings.trained == "language":
        return *unused, *(_LANGUAGE + part for part in _VISION)
    return *unused, _LANGUAGE


def _unused_parts(sizes: Sizes) -> list[str]:
    """What takes no part in the output: of the last layer that reads images and prompt, all but keys and values, for
    the value head passes no gradient on.
    """
    last = f"{_LANGUAGE}model.text_model.layers.{sizes.layers - 1}."
    rest = ("self_attn.q_proj", "self_attn.o_proj", "mlp", "post_attention_layernorm")
    return [f"{_LANGUAGE}lm_head.", f"{_LANGUAGE}model.text_model.norm.", *(last + part + "." for part in rest)]
