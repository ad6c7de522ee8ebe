"""Bytes of the activations of a sample, counted from what autograd keeps of each layer.

A block of the decoder keeps what its norms, its attention (queries, keys, values and their result) and its MLP (gate,
its SiLU, and up) need, and the inputs of linear layers: once for those with trained weights, and in float32 for each
that has an adapter.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from peft.tuners.lora.layer import LoraLayer
from torch import nn

from treadle.policies.footprint import Activations
from treadle.policies.prismatic.blocks import BLOCK_BYTES
from treadle.policies.prismatic.film import FilmBlock
from treadle.policies.prismatic.vision import Block, ViT
from treadle.policies.towers import ConvTower

if TYPE_CHECKING:
    from treadle.policies.prismatic.stored import StoredPolicy


def count_activations(policy: "StoredPolicy", prompt: int | None = None, cached: bool = False) -> Activations:
    """The activations of a sample as the policy is now: which parameters are trained, with which adapters.

    Args:
        policy: on any device, the meta device too.
        prompt: tokens of the longest prompt; by default as many as there may be.
        cached: keys and values of all tokens are kept while it acts.
    """
    config = policy.config
    text: Any = policy.language_model.config
    width = policy.language_model.model.embed_tokens.weight.element_size()
    towers = policy.towers()
    cameras = config.cameras or 1
    patches = towers[0].patches * cameras
    tokens = patches + (prompt or config.prompt_length) + bool(config.proprioception_dim) + config.tokens + 1
    between, inside, largest = 0, 0, 0
    for tower in towers:
        if _learns(tower):
            kept, blocks = _tower(tower, width)
            between += cameras * kept
            inside += cameras * sum(blocks)
            largest = max(largest, cameras * max(blocks, default=0))
    if _learns(policy.projector) or between:
        between += patches * _projector(policy.projector, width)
    layers = [_decoder(layer, width) * tokens for layer in policy.language_model.model.layers]
    between += len(layers) * tokens * text.hidden_size * width
    inside += sum(layers)
    # In the backward pass, gradients of what the MLP multiplies; of adapters below float32, their float32 results.
    mlp: Any = policy.language_model.model.layers[0].mlp
    adapted = isinstance(mlp.up_proj, LoraLayer) and width < 4
    passing = tokens * (8 if adapted else 2 * width) * text.intermediate_size + 2 * width * tokens * text.hidden_size
    block = max(largest, max(layers) + passing)
    acting = tokens * width * (3 * text.hidden_size + 4 * text.intermediate_size)
    seeing = cameras * max(_seeing(tower, width) for tower in towers)
    heads = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    cache = 2 * text.num_hidden_layers * heads * tokens * width if cached else 0
    return Activations(
        between=between,
        inside=inside,
        block=block,
        waiting=3 * tokens * text.hidden_size * width + cache,
        acting=max(acting, seeing),
        at_once=max(1, BLOCK_BYTES // (tokens * text.intermediate_size * width)),
    )


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _inputs(layers: Sequence[nn.Module], size: int, width: int, kept: bool = False) -> int:
    """Bytes kept of the input of linear layers, of `size` numbers; none of it where it is `kept` anyway."""
    found, shared = 0, False
    for layer in layers:
        if isinstance(layer, LoraLayer):
            found += 4 * sum(layer.r.values())
            shared |= width == 4
            found += 0 if width == 4 else 4 * size
        else:
            weight = layer.weight
            shared |= isinstance(weight, nn.Parameter) and weight.requires_grad
    return found + (width * size if shared and not kept else 0)


def _decoder(layer: Any, width: int) -> int:
    """Bytes that a block of the decoder keeps of a token."""
    attention, mlp = layer.self_attn, layer.mlp
    hidden, inner = attention.q_proj.in_features, mlp.down_proj.in_features
    keys = attention.k_proj.out_features
    norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
    # A norm computes in float32; its input is kept, which in float32 is the block's own for the first.
    found = hidden * (8 if width < 4 else 4)
    found += hidden * width * sum(weight.requires_grad for weight in norms)
    found += width * (attention.q_proj.out_features + 2 * keys)
    found += _inputs([attention.q_proj, attention.k_proj, attention.v_proj], hidden, width)
    found += width * hidden + _inputs([attention.o_proj], hidden, width, kept=True)
    found += _inputs([mlp.gate_proj, mlp.up_proj], hidden, width)
    return found + 3 * width * inner + _inputs([mlp.down_proj], inner, width)


def _tower(tower: nn.Module, width: int) -> tuple[int, list[int]]:
    """Bytes kept of an image: always, and in each block."""
    if isinstance(tower, ConvTower):
        return 2 * width * sum(_maps(tower)), []
    assert isinstance(tower, ViT)
    tokens = tower.patches + tower.prefix
    blocks: list[Any] = list(tower.blocks[:-1])
    return width * tokens * tower.width * len(blocks), [tokens * _vision(block, tower.width, width) for block in blocks]


def _maps(tower: ConvTower) -> Iterable[int]:
    """Numbers behind each convolution."""
    layers = [layer for layer in tower.stem if isinstance(layer, nn.Conv2d)]
    return [layer.out_channels * (tower.patches << 2 * (len(layers) - 1 - i)) for i, layer in enumerate(layers)]


def _vision(block: Block | FilmBlock, size: int, width: int) -> int:
    """Bytes that a block of a tower keeps of a patch."""
    if isinstance(block, FilmBlock):
        # The features that the instruction scales; scale and shift are of the image, not of a patch.
        return _vision(block.block, size, width) + width * size
    inner = block.mlp.fc2.in_features
    # The second norm's input; queries, keys, values and what attention finds; the MLP before its GELU.
    found = width * (5 * size + inner)
    found += _inputs([block.attn.qkv], size, width) + _inputs([block.attn.proj], size, width, kept=True)
    found += _inputs([block.mlp.fc1], size, width) + _inputs([block.mlp.fc2], inner, width)
    scales = [p for layer in (block.ls1, block.ls2) for p in layer.parameters()]
    return found + width * size * sum(parameter.requires_grad for parameter in scales)


def _projector(projector: Any, width: int) -> int:
    """Bytes that the projector keeps of a patch; it is never computed again."""
    layers = [layer for layer in (projector.fc1, projector.fc2, projector.fc3) if layer is not None]
    activated = width * sum(layer.out_features for layer in layers[:-1])
    return activated + sum(_inputs([layer], layer.in_features, width) for layer in layers)


def _seeing(tower: nn.Module, width: int) -> int:
    """Bytes of an image in the largest block of a tower that acts."""
    if isinstance(tower, ViT):
        first: Any = tower.blocks[0]
        plain = first.block if isinstance(first, FilmBlock) else first
        return width * (tower.patches + tower.prefix) * (3 * tower.width + 2 * plain.mlp.fc2.in_features)
    assert isinstance(tower, ConvTower)
    return 2 * width * max(_maps(tower))
