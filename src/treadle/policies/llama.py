"""A lean bidirectional pass through transformers' Llama layers.

The weights stay in `LlamaForCausalLM`; only the walk through a layer is ours. Against the stock forward it saves the
mask and rotary work per layer, and runs queries and the MLP of the last layer only where its output is read.

Shapes: B samples, N tokens, K tokens read, W width, D head width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaRMSNorm

FUSED_SIZE = 2**18
"""Parameters of a layer up to which it is joined with its neighbours."""


@dataclass(frozen=True, slots=True)
class Bidirectional:
    """What every layer of one pass needs."""

    cos: Tensor
    """[1 or B, N, 1, D]."""
    sin: Tensor
    """[1 or B, N, 1, D], its first half negated."""
    mask: Tensor | None
    """[B, 1, 1, N] bool, False on padding; None where there is none."""


class BidirectionalLayer(LlamaDecoderLayer):
    """A Llama layer that also runs without causality. Called without `context` it is the stock layer."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        *args: Any,
        context: Bidirectional | None = None,
        read: slice | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states [B, N, W] to [B, N, W], or to [B, K, W] at the columns `read`."""
        if context is None:
            return super().forward(hidden_states, *args, **kwargs)
        normed = rms_norm(self.input_layernorm, hidden_states)
        residual = hidden_states if read is None else hidden_states[:, read]
        hidden_states = residual + self._attend(normed, context, read)
        normed = rms_norm(self.post_attention_layernorm, hidden_states)
        gate, up = project(normed, self.mlp.gate_proj, self.mlp.up_proj)
        return hidden_states + self.mlp.down_proj(F.silu(gate) * up)

    def _attend(self, x: Tensor, context: Bidirectional, read: slice | None) -> Tensor:
        attention = self.self_attn
        cos, sin = context.cos, context.sin
        if read is None:
            q, k, v = project(x, attention.q_proj, attention.k_proj, attention.v_proj)
            query_cos, query_sin = cos, sin
        else:
            q = attention.q_proj(x[:, read])
            k, v = project(x, attention.k_proj, attention.v_proj)
            query_cos, query_sin = cos[:, read], sin[:, read]
        heads = (-1, attention.head_dim)
        out = F.scaled_dot_product_attention(
            rotate(q.unflatten(-1, heads), query_cos, query_sin).transpose(1, 2),
            rotate(k.unflatten(-1, heads), cos, sin).transpose(1, 2),
            v.unflatten(-1, heads).transpose(1, 2),
            attn_mask=context.mask,
            scale=attention.scaling,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        return attention.o_proj(out.transpose(1, 2).flatten(2))


def make_bidirectional(model: LlamaForCausalLM) -> None:
    """Give the layers of `model` their bidirectional mode, in place; parameters and their names stay."""
    for layer in model.model.layers:
        layer.__class__ = BidirectionalLayer


def bidirectional(
    model: LlamaForCausalLM, embeddings: Tensor, positions: Tensor, mask: Tensor | None, read: slice
) -> Tensor:
    """Last hidden states [B, K, W], after the final norm, at the columns `read`.

    `embeddings` [B, N, W]; `positions` [1 or B, N] rotary positions; `mask` [B, N] bool, False on padding, or None.
    """
    cos, sin = rotary(model, positions, embeddings.dtype)
    context = Bidirectional(cos, sin, None if mask is None else mask[:, None, None, :])
    *before, last = model.model.layers
    hidden = embeddings
    for layer in before:
        hidden = layer(hidden, context=context)
    return rms_norm(model.model.norm, last(hidden, context=context, read=read))


def project(x: Tensor, *linears: nn.Module) -> tuple[Tensor, ...]:
    """Several linear layers of one input. Small plain ones run as one product, which saves a third of the time at width
    64; joining the weights of large ones would copy them, and adapters on top of a layer must be called.
    """
    weights = [layer.weight for layer in linears if type(layer) is nn.Linear and layer.bias is None]
    if len(weights) < len(linears) or weights[0].numel() > FUSED_SIZE:
        return tuple(layer(x) for layer in linears)
    return F.linear(x, torch.cat(weights)).split([len(weight) for weight in weights], dim=-1)


def rotary(model: LlamaForCausalLM, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [1 or B, N, 1, D] of positions [1 or B, N]."""
    frequencies = model.model.rotary_emb.inv_freq
    angles = (positions[..., None].float() * frequencies.float())[:, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, N, heads, D]."""
    # The halves change places by a flip: unlike slices, it has a cheap gradient.
    return x * cos + x.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * sin


def rms_norm(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    """`norm(x)`, in float32 inside as there."""
    return norm.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=norm.variance_epsilon).to(x.dtype)
