"""The language model that reads the prefix, and the expert that turns noise into actions.

The prefix does not depend on the noise, so it is read once (`read_prefix`) and serves every velocity. Types follow
lerobot's to the last rounding: a residual takes the type of the projection that is added to it.
Shapes: B samples, N columns of the prefix, H actions, D padded action dimensions, W and E widths of the language model
and of the expert.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.policies.smolvla.eyes import Eyes
from treadle.policies.smolvla.sizes import Sizes
from treadle.policies.smolvla.vision import Connector, VisionModel, embed_images

_ROPE_BASE = 10_000
"""lerobot's own; the rope_theta of the language model's config is not used."""


@dataclass(slots=True)
class Prefix:
    """What the expert reads of an observation."""

    keys: list[Tensor]
    """[B, N, key heads, head] of each layer, rotated."""
    values: list[Tensor]
    """[B, N, key heads, head] of each layer."""
    valid: Tensor
    """[B, N] bool."""
    state: Tensor | None = None
    """[B, W] the last hidden state of proprioception, which has seen all; None where its column was not read."""


class RMSNorm(nn.Module):
    """Llama's norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same, in the wider of both types."""
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


class Projections(nn.Module):
    """The four matrices of attention."""

    def __init__(self, width: int, sizes: Sizes, key_inputs: int) -> None:
        super().__init__()
        inner, keys = sizes.heads * sizes.head, sizes.key_heads * sizes.head
        self.q_proj, self.o_proj = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(key_inputs, keys, bias=False) for _ in range(2))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A Llama layer whose attention is computed outside. `key_inputs`: numbers that keys and values are made of."""

    def __init__(self, width: int, hidden: int, sizes: Sizes, key_inputs: int | None = None) -> None:
        super().__init__()
        self.self_attn = Projections(width, sizes, key_inputs or width)
        self.mlp = Mlp(width, hidden)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)

    def normed(self, x: Tensor) -> Tensor:
        """The input of the projections."""
        return self.input_layernorm(x).to(self.self_attn.q_proj.weight.dtype)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """All that follows attention."""
        out = self.self_attn.o_proj(attended.to(self.self_attn.o_proj.weight.dtype))
        out = (out + x).to(out.dtype)
        return self.mlp(self.post_attention_layernorm(out)) + out


class Decoder(nn.Module):
    """Layers and a final norm; the language model has word embeddings besides."""

    def __init__(self, layers: list[Layer], width: int, vocabulary: int = 0) -> None:
        super().__init__()
        if vocabulary:
            self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(width)

    def blocks(self) -> list[Layer]:
        """The layers, in order."""
        return cast("list[Layer]", list(self.layers))


class VisionLanguage(nn.Module):
    """What reads the prefix."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if sizes.towers:
            self.eyes = Eyes(sizes)
        else:
            self.vision_model, self.connector = VisionModel(sizes), Connector(sizes)
        layers = [Layer(sizes.width, sizes.mlp, sizes) for _ in range(sizes.layers)]
        self.text_model = Decoder(layers, sizes.width, sizes.vocabulary)


class WithHead(nn.Module):
    """The same with a language head, which is stored and never used."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.model = VisionLanguage(sizes)
        self.lm_head: nn.Linear | None = nn.Linear(sizes.width, sizes.vocabulary, bias=False)


class WithExpert(nn.Module):
    """The same with the expert."""

    def __init__(self, sizes: Sizes, expert: list[Layer]) -> None:
        super().__init__()
        self.vlm = WithHead(sizes)
        self.lm_expert = Decoder(expert, sizes.expert_width)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of x [B, L, heads, head] at `positions` [B, L], halves split, in float32."""
    half = x.shape[-1] // 2
    scale = _ROPE_BASE ** ((2.0 / x.shape[-1]) * torch.arange(half, dtype=torch.float32, device=x.device))
    angle = (positions[..., None].float() / scale)[..., None, :]
    sin, cos = angle.sin(), angle.cos()
    a, b = x.float().split(half, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of [B, L, heads, head] to [B, M, key heads, head] under `mask` [B, L, M]: [B, L, heads * head]."""
    repeat = queries.shape[2] // keys.shape[2]
    keys, values = (x.repeat_interleave(repeat, 2) for x in (keys, values))
    scores = torch.matmul(queries.float().transpose(1, 2), keys.float().permute(0, 2, 3, 1)) * queries.shape[-1] ** -0.5
    scores = torch.where(mask[:, None], scores, torch.finfo(torch.float32).min)
    shares = scores.softmax(-1).to(values.dtype)
    return torch.matmul(shares, values.transpose(1, 2)).transpose(1, 2).flatten(2)


def _both(valid: Tensor) -> Tensor:
    """[B, N, N] columns [B, N] that are valid on both sides."""
    return valid[:, None, :] & valid[:, :, None]


class SmolVLAModel(nn.Module):
    """The network, under published names less their `model.`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        keys = sizes.key_heads * sizes.head
        expert = [
            Layer(sizes.expert_width, sizes.expert_mlp, sizes, None if self._joint(i) else keys)
            for i in range(sizes.layers)
        ]
        self.vlm_with_expert = WithExpert(sizes, expert)
        self.state_proj = nn.Linear(sizes.state, sizes.width)
        self.action_in_proj = nn.Linear(sizes.action, sizes.expert_width)
        self.action_out_proj = nn.Linear(sizes.expert_width, sizes.action)
        self.action_time_mlp_in = nn.Linear(2 * sizes.expert_width, sizes.expert_width)
        self.action_time_mlp_out = nn.Linear(sizes.expert_width, sizes.expert_width)

    def _joint(self, layer: int) -> bool:
        """In this layer, actions attend to each other and to the prefix."""
        return self.sizes.self_attention_every > 0 and layer % self.sizes.self_attention_every == 0

    def embed_images(self, images: list[Tensor]) -> Tensor:
        """Tokens [B, S, W] of all cameras, whose images are [B, 3, H, W] in [-1, 1]."""
        inner = self.vlm_with_expert.vlm.model
        if self.sizes.towers:
            return torch.cat([inner.eyes(image) for image in images], 1)
        return torch.cat([embed_images(inner.vision_model, inner.connector, image) for image in images], 1)

    def embed_context(self, features: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, N, W] and which of them are valid [B, N]: of images, given as `features` [B, S, W], and of the
        prompt, given as `ids` and `mask` [B, L].
        """
        words = self.vlm_with_expert.vlm.model.text_model.embed_tokens(ids) * math.sqrt(self.sizes.width)
        there = ids.new_ones(*features.shape[:2], dtype=torch.bool)
        # In the type that they have beside the state.
        wide = torch.promote_types(words.dtype, self.state_proj.weight.dtype)
        return torch.cat([features, words], 1).to(wide), torch.cat([there, mask.bool()], 1)

    def embed_prefix(self, images: list[Tensor], ids: Tensor, mask: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, N, W] and which of them are valid [B, N]: images, prompt, state.

        Images are [B, 3, H, W] in [-1, 1], `ids` and `mask` [B, L] the prompt, `state` [B, padded] normalised.
        """
        return self.join_state(*self.embed_context(self.embed_images(images), ids, mask), state)

    def join_state(self, embeddings: Tensor, valid: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state's column behind those of images and prompt."""
        own = self.state_proj(state)[:, None]
        return torch.cat([embeddings, own], 1), torch.cat([valid, valid.new_ones(len(valid), 1)], 1)

    def read_prefix(self, embeddings: Tensor, valid: Tensor) -> Prefix:
        """Keys and values of all layers. Images and prompt see each other; the state sees all, and none sees it."""
        block = torch.zeros_like(valid)
        block[:, -1] = True
        prefix, x = self._read(embeddings, valid, (block[:, None, :] <= block[:, :, None]) & _both(valid))
        prefix.state = x[:, -1]
        return prefix

    def read_context(self, embeddings: Tensor, valid: Tensor) -> Prefix:
        """The same of images and prompt alone, which does not depend on the state."""
        return self._read(embeddings, valid, _both(valid))[0]

    def read_state(self, context: Prefix, state: Tensor) -> Prefix:
        """A prefix from its context and the state [B, padded]: one column more, at its cost alone."""
        x = self.state_proj(state)[:, None]
        valid = torch.cat([context.valid, context.valid.new_ones(len(x), 1)], 1)
        positions = context.valid.sum(-1, keepdim=True)
        prefix = Prefix([], [], valid)
        for layer, keys, values in zip(self._text(), context.keys, context.values, strict=True):
            q, k, v = self._project(layer, layer.normed(x))
            prefix.keys.append(torch.cat([keys, rotate(k, positions)], 1))
            prefix.values.append(torch.cat([values, v], 1))
            x = layer.finish(x, attend(rotate(q, positions), prefix.keys[-1], prefix.values[-1], valid[:, None]))
        prefix.state = x[:, 0]
        return prefix

    def _read(self, x: Tensor, valid: Tensor, mask: Tensor) -> tuple[Prefix, Tensor]:
        """Keys and values of all layers under a mask [B, N, N], and the last hidden states [B, N, W]."""
        positions = valid.cumsum(1) - 1
        prefix = Prefix([], [], valid)
        for layer in self._text():
            q, k, v = self._project(layer, layer.normed(x))
            k = rotate(k, positions)
            prefix.keys.append(k)
            prefix.values.append(v)
            x = layer.finish(x, attend(rotate(q, positions), k, v, mask))
        return prefix, x

    def _text(self) -> list[Layer]:
        return self.vlm_with_expert.vlm.model.text_model.blocks()

    def velocity(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, H, D] float32 of the states x [B, H, D] at times t [B]."""
        return self.action_out_proj(self.expert_states(prefix, x, t))

    def expert_states(self, prefix: Prefix, x: Tensor, t: Tensor) -> Tensor:
        """The expert's last hidden states [B, H, E] float32."""
        h = self._embed_suffix(x, t)
        steps = torch.arange(x.shape[1], device=x.device)
        positions = prefix.valid.sum(-1, keepdim=True) + steps
        # Padding among the prompt is never seen; an action sees itself and earlier ones.
        before = prefix.valid[:, None].expand(-1, x.shape[1], -1)
        own = (steps[None] <= steps[:, None]).expand(len(x), -1, -1)
        for i, layer in enumerate(self.vlm_with_expert.lm_expert.blocks()):
            keys, values = prefix.keys[i], prefix.values[i]
            if self._joint(i):
                q, k, v = self._project(layer, layer.normed(h))
                q, k = rotate(q, positions), rotate(k, positions)
                keys, values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
                attended = attend(q, keys, values, torch.cat([before, own], 2))
            else:
                q = layer.self_attn.q_proj(layer.normed(h)).unflatten(-1, (-1, self.sizes.head))
                k, v = (
                    part(x.flatten(2).to(part.weight.dtype)).unflatten(-1, (-1, self.sizes.head))
                    for part, x in ((layer.self_attn.k_proj, keys), (layer.self_attn.v_proj, values))
                )
                attended = attend(rotate(q, steps.expand(len(h), -1)), k, v, before)
            h = layer.finish(h, attended)
        return self.vlm_with_expert.lm_expert.norm(h).float()

    def _embed_suffix(self, x: Tensor, t: Tensor) -> Tensor:
        actions = self.action_in_proj(x)
        share = torch.linspace(0, 1, self.sizes.expert_width // 2, dtype=torch.float64, device=x.device)
        sizes = self.sizes
        period = sizes.min_period * (sizes.max_period / sizes.min_period) ** share
        angle = (1.0 / period * 2 * math.pi)[None] * t[:, None]
        time = torch.cat([angle.sin(), angle.cos()], 1).to(actions.dtype)[:, None].expand_as(actions)
        return self.action_time_mlp_out(F.silu(self.action_time_mlp_in(torch.cat([actions, time], 2))))

    def _project(self, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, head = layer.self_attn, self.sizes.head
        q, k, v = (part(x).unflatten(-1, (-1, head)) for part in (own.q_proj, own.k_proj, own.v_proj))
        return q, k, v
