"""Sizes of a SmolVLA. The defaults are those of `lerobot/smolvla_base`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """All that shapes depend on."""

    image: int = 512
    """Side of an image in pixels; a power of two, for which SigLIP's positions are simply counted."""
    patch: int = 16
    shuffle: int = 4
    """Patches on each side of the square that becomes one token."""
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_mlp: int = 3072
    width: int = 960
    """Of the language model."""
    layers: int = 16
    """Of the language model and of the expert."""
    heads: int = 15
    key_heads: int = 5
    head: int = 64
    """Width of an attention head."""
    mlp: int = 2560
    vocabulary: int = 49280
    expert_width: int = 720
    chunk: int = 50
    """H, actions that the expert predicts."""
    state: int = 32
    """Padded dimensions of proprioception."""
    action: int = 32
    """D, padded dimensions of actions."""
    self_attention_every: int = 2
    """In other layers the expert looks at the prefix alone."""
    towers: tuple[tuple[int, ...], ...] = ()
    """Channels of small convolutional towers that see in place of SigLIP, in tiny policies; none is SigLIP."""
    min_period: float = 4e-3
    max_period: float = 4.0

    @property
    def expert_mlp(self) -> int:
        """Hidden units of the expert's MLPs: 8/3 of its width, rounded up to a multiple of 256."""
        return 256 * -(-4 * int(2 * self.expert_width / 3) // 256)
