"""A lean pass through transformers' Llama layers, bidirectional or causal with a key-value cache.

The weights stay in `LlamaForCausalLM`; only the walk through a layer is ours. Against the stock forward it saves the
mask and rotary work per layer, and runs queries and the MLP of the last layer only where its output is read.

Shapes: B samples, N tokens, K tokens read, S tokens at the end that see the mask, W width, H heads, D head width.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaRMSNorm

from treadle.policies.prismatic.blocks import compiled, in_blocks

FUSED_SIZE = 2**18
"""Parameters of a layer up to which it is joined with its neighbours."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every layer of one pass needs."""

    cos: Tensor
    """[1 or B, N, 1, D]."""
    sin: Tensor
    """[1 or B, N, 1, D], its first half negated."""
    mask: Tensor | None
    """[1 or B, 1, S, keys] bool, what the last S columns attend to (all columns, if S is 1 and there is no causality);
    None for everything.
    """
    causal: bool = False
    """Columns before the last S attend to themselves and what is before them, and need no mask."""

    def take(self, rows: slice) -> "Context":
        """That of some of the samples."""

        def some(x: Tensor) -> Tensor:
            return x if len(x) == 1 else x[rows]

        mask = None if self.mask is None else some(self.mask)
        return replace(self, cos=some(self.cos), sin=some(self.sin), mask=mask)


class LeanLayer(LlamaDecoderLayer):
    """A Llama layer with a lean walk. Called without `context` it is the stock layer."""

    recompute = False
    """Compute the layer again in the backward pass instead of keeping what is in it (gradient checkpointing)."""
    fast = False
    """Run compiled where no gradient is kept."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        *args: Any,
        context: Context | None = None,
        read: slice | None = None,
        past: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states [B, N, W] to [B, N, W], or to [B, K, W] at the columns `read`.

        `past` [2, B, H, columns so far, D] holds the keys and values of a decoder; those of the N last are written.
        """
        if context is None:
            return super().forward(hidden_states, *args, **kwargs)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._lean, hidden_states, context, read, use_reentrant=False, preserve_rng_state=False)
        return self._lean(hidden_states, context, read, past)

    def _lean(self, hidden_states: Tensor, context: Context, read: slice | None, past: Tensor | None = None) -> Tensor:
        fast = self.fast and not torch.is_grad_enabled()
        enter = compiled(LeanLayer._enter) if fast and read is None else LeanLayer._enter
        leave = compiled(LeanLayer._leave) if fast else LeanLayer._leave
        queries, keys, values = enter(self, hidden_states, context.cos, context.sin, read)
        if past is not None:
            past[0, :, :, -keys.shape[2] :] = keys
            past[1, :, :, -keys.shape[2] :] = values
            keys, values = past.unbind()
        attention = self.self_attn
        shared = {"scale": attention.scaling, "enable_gqa": attention.num_key_value_groups > 1}
        attended = attend(queries, keys, values, context, shared)
        return leave(self, hidden_states if read is None else hidden_states[:, read], attended)

    def _enter(self, x: Tensor, cos: Tensor, sin: Tensor, read: slice | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, H, columns, D] of hidden states [B, N, W]."""
        attention = self.self_attn
        x = rms_norm(self.input_layernorm, x)
        if read is None:
            q, k, v = project(x, attention.q_proj, attention.k_proj, attention.v_proj)
            query_cos, query_sin = cos, sin
        else:
            q = attention.q_proj(x[:, read])
            k, v = project(x, attention.k_proj, attention.v_proj)
            query_cos, query_sin = cos[:, read], sin[:, read]
        heads = (-1, attention.head_dim)
        queries = rotate(q.unflatten(-1, heads), query_cos, query_sin).transpose(1, 2)
        keys = rotate(k.unflatten(-1, heads), cos, sin).transpose(1, 2)
        return queries, keys, v.unflatten(-1, heads).transpose(1, 2)

    def _leave(self, residual: Tensor, attended: Tensor) -> Tensor:
        """The layer's output [B, K, W], given what attention found [B, K, H * D]."""
        hidden_states = residual + self.self_attn.o_proj(attended)
        normed = rms_norm(self.post_attention_layernorm, hidden_states)
        gate, up = project(normed, self.mlp.gate_proj, self.mlp.up_proj)
        return hidden_states + self.mlp.down_proj(F.silu(gate) * up)


def attend(queries: Tensor, keys: Tensor, values: Tensor, context: Context, settings: dict[str, Any]) -> Tensor:
    """Attention [B, Q, H * D] of queries [B, H, Q, D], the last Q columns, to keys and values [B, H, N, D]."""
    mask = context.mask
    tail = queries.shape[2] if not context.causal else 1 if mask is None else mask.shape[2]
    out = F.scaled_dot_product_attention(queries[:, :, -tail:], keys, values, attn_mask=mask, **settings)
    out = out.transpose(1, 2)
    if queries.shape[2] > tail:
        # Without a mask tensor the kernel skips what is masked, and real columns here have no padding before them.
        head = (queries[:, :, :-tail], keys[:, :, :-tail], values[:, :, :-tail])
        before = F.scaled_dot_product_attention(*head, is_causal=True, **settings)
        out = torch.cat([before.transpose(1, 2), out], dim=1)
    return out.flatten(2)


def make_lean(model: LlamaForCausalLM) -> None:
    """Give the layers of `model` their lean mode, in place; parameters and their names stay."""
    for layer in model.model.layers:
        layer.__class__ = LeanLayer


def walk(
    model: LlamaForCausalLM, embeddings: Tensor, context: Context, read: slice, past: Tensor | None = None
) -> Tensor:
    """Last hidden states [B, K, W], after the final norm, at the columns `read` of `embeddings` [B, N, W].

    Keys and values are written to `past` [layers, 2, B, H, columns so far, D].
    """
    samples, columns, _ = embeddings.shape
    end = len(model.model.layers) - 1

    def through(rows: slice) -> Tensor:
        hidden, some = embeddings[rows], context.take(rows)
        for index, layer in enumerate(model.model.layers):
            kept = None if past is None else past[index, :, rows]
            hidden = layer(hidden, context=some, read=read if index == end else None, past=kept)
        return hidden

    first: Any = model.model.layers[0]
    hidden = in_blocks(through, samples, columns * model.config.intermediate_size, first.mlp.gate_proj.weight)
    return rms_norm(model.model.norm, hidden)


def bidirectional(
    model: LlamaForCausalLM, embeddings: Tensor, positions: Tensor, valid: Tensor | None, read: slice
) -> Tensor:
    """Last hidden states [B, K, W] at the columns `read`, where every token attends to every token.

    `embeddings` [B, N, W]; `positions` [1 or B, N] rotary positions; `valid` [B, N] bool, False on padding, or None.
    """
    cos, sin = rotary(model, positions, embeddings.dtype)
    mask = None if valid is None else valid[:, None, None, :]
    return walk(model, embeddings, Context(cos, sin, mask), read)


def causal(model: LlamaForCausalLM, embeddings: Tensor, positions: Tensor, valid: Tensor | None, count: int) -> Tensor:
    """Last hidden states [B, count, W] of the last `count` columns, where a token attends to those before it.

    As `bidirectional`; padding may only stand directly before the last `count` columns.
    """
    columns = embeddings.shape[1]
    index = torch.arange(columns, device=embeddings.device)
    mask = (index <= index[-count:, None])[None, None]
    if valid is not None:
        mask = mask & valid[:, None, None, :]
    cos, sin = rotary(model, positions, embeddings.dtype)
    read = slice(columns - count, columns)
    return walk(model, embeddings, Context(cos, sin, mask, causal=True), read)


class Decoder:
    """Causal decoding with a static cache: the prefix at once, then `read` token by token, no gradient."""

    def __init__(self, model: LlamaForCausalLM, embeddings: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """`embeddings` [B, N, W] of the prefix; `positions` [1 or B, N + steps], `valid` [B, N + steps] or None."""
        self._model = model
        self._valid = None if valid is None else valid[:, None, None, :]
        self._cos, self._sin = rotary(model, positions, embeddings.dtype)
        config: Any = model.config
        attention: Any = model.model.layers[0].self_attn
        heads = (config.num_key_value_heads, positions.shape[1], attention.head_dim)
        # Memory of the final size, for the keys and values of all columns.
        self._past = embeddings.new_empty((config.num_hidden_layers, 2, len(embeddings), *heads))
        self._used = 0
        self.hidden = embeddings
        """Last hidden states [B, 1, W] of the column that was read last."""
        self.read(embeddings)

    def read(self, embeddings: Tensor) -> Tensor:
        """Read further columns [B, n, W], a token at a time after the prefix; returns `hidden`."""
        start, count = self._used, embeddings.shape[1]
        columns = slice(start, start + count)
        mask = None if self._valid is None else self._valid[..., : start + count]
        context = Context(self._cos[:, columns], self._sin[:, columns], mask, causal=True)
        past = self._past[..., : start + count, :]
        self.hidden = walk(self._model, embeddings, context, slice(count - 1, count), past)
        self._used += count
        return self.hidden


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
