"""A lean bidirectional pass through transformers' Llama layers.

The weights stay in `LlamaForCausalLM`; only the walk through a layer is ours. Against the stock forward it saves the
mask and rotary work per layer, and runs queries and the MLP of the last layer only where its output is read.

Shapes: B samples, N tokens, K tokens read, W width, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaRMSNorm


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
        self, hidden_states: Tensor, *args, context: Bidirectional | None = None, read: Tensor | None = None, **kwargs
    ) -> Tensor:
        """Hidden states [B, N, W] to [B, N, W], or to [B, K, W] at the columns `read` [B, K]."""
        if context is None:
            return super().forward(hidden_states, *args, **kwargs)
        normed = rms_norm(self.input_layernorm, hidden_states)
        hidden_states = (hidden_states if read is None else pick(hidden_states, read)) + self._attend(
            normed, context, read
        )
        normed = rms_norm(self.post_attention_layernorm, hidden_states)
        mlp = self.mlp
        return hidden_states + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))

    def _attend(self, x: Tensor, context: Bidirectional, read: Tensor | None) -> Tensor:
        attention = self.self_attn
        split = (-1, attention.head_dim)
        query_cos, query_sin, queries = context.cos, context.sin, x
        if read is not None:
            queries = pick(x, read)
            query_cos, query_sin = (pick_rows(t, read) for t in (context.cos, context.sin))
        q = rotate(attention.q_proj(queries).unflatten(-1, split), query_cos, query_sin)
        k = rotate(attention.k_proj(x).unflatten(-1, split), context.cos, context.sin)
        v = attention.v_proj(x).unflatten(-1, split)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
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
    model: LlamaForCausalLM, embeddings: Tensor, positions: Tensor, mask: Tensor | None, read: Tensor
) -> Tensor:
    """Last hidden states [B, K, W], after the final norm, at the columns `read` [B, K].

    `embeddings` [B, N, W]; `positions` [1 or B, N] rotary positions; `mask` [B, N] bool, False on padding, or None.
    """
    cos, sin = rotary(model, positions, embeddings.dtype)
    context = Bidirectional(cos, sin, None if mask is None else mask[:, None, None, :])
    layers = list(model.model.layers)
    hidden = embeddings
    for layer in layers[:-1]:
        hidden = layer(hidden, context=context)
    hidden = layers[-1](hidden, context=context, read=read)
    return rms_norm(model.model.norm, hidden)


def rotary(model: LlamaForCausalLM, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [1 or B, N, 1, D] of positions [1 or B, N]."""
    frequencies = model.model.rotary_emb.inv_freq
    angles = (positions[..., None].float() * frequencies.float())[:, :, None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, N, heads, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((second, first), dim=-1) * sin


def rms_norm(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    """`norm(x)` in one call, in float32 inside as there."""
    return norm.weight * F.rms_norm(x.float(), (x.shape[-1],), eps=norm.variance_epsilon).to(x.dtype)


def pick(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, N, W] at `columns` [B, K]: [B, K, W]."""
    return x.gather(1, columns[:, :, None].expand(-1, -1, x.shape[-1]))


def pick_rows(table: Tensor, columns: Tensor) -> Tensor:
    """A rotary table [1 or B, N, 1, D] at `columns` [B, K]: [B, K, 1, D]."""
    if table.shape[0] == 1:
        return table[0][columns]
    return table.gather(1, columns[:, :, None, None].expand(-1, -1, 1, table.shape[-1]))
