"""The floor of a policy's time: its matrix products alone, at the shapes and with the weights that it has.

Norms, activations, softmax, rotary embedding, sampling and copies are left out, so nothing that computes the same
function with the same products can be faster than this.

Shapes: B samples, S patches, N columns, K tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from treadle.policies.prismatic import OpenVLA
from treadle.policies.prismatic.action_tokens import BINS
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.vision import ViT
from treadle.policies.towers import Tower


@dataclass(frozen=True, slots=True)
class Product:
    """`left @ weight.mT`, of tensors whose values do not matter."""

    left: tuple[int, ...]
    """[rows, inner], or [groups, rows, inner]."""
    weight: Tensor
    """[columns, inner] of a layer, or [groups, columns, inner], which stands for keys or values."""

    @property
    def operations(self) -> float:
        """Floating-point operations."""
        rows = 1
        for size in self.left[:-1]:
            rows *= size
        return 2.0 * rows * self.left[-1] * self.weight.shape[-2]


class Floor:
    """All products of one decision for a batch, ready to run."""

    def __init__(self, policy: PrismaticPolicy, inputs: PrismaticInputs) -> None:
        with torch.no_grad():
            self._products = list(_Lister(policy).products(inputs))
        self.operations = sum(product.operations for product in self._products)
        """Floating-point operations of the forward products."""
        dtype, device = policy.language_model.lm_head.weight.dtype, policy.device
        self._left: dict[tuple[int, ...], Tensor] = {}
        self._out: dict[tuple[int, ...], Tensor] = {}
        for product in self._products:
            out = (*product.left[:-1], product.weight.shape[-2])
            for shape, tensors in ((product.left, self._left), (out, self._out)):
                if shape not in tensors:
                    tensors[shape] = torch.randn(shape, device=device).to(dtype)

    def forward(self) -> None:
        """Run the products of a forward pass, each into memory that is there."""
        with torch.no_grad():
            for product in self._products:
                out = self._out[(*product.left[:-1], product.weight.shape[-2])]
                torch.matmul(self._left[product.left], product.weight.mT, out=out)

    def forward_and_backward(self) -> None:
        """Run these, and the two products of each one's gradient."""
        self.forward()
        with torch.no_grad():
            for product in self._products:
                left = self._left[product.left]
                gradient = self._out[(*product.left[:-1], product.weight.shape[-2])]
                torch.matmul(gradient, product.weight, out=self._buffer(product.left, gradient))
                torch.matmul(gradient.mT, left, out=self._buffer(tuple(product.weight.shape), gradient))

    def _buffer(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        key = (0, *shape)
        if key not in self._out:
            self._out[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return self._out[key]


class _Lister:
    """Walks through a policy; attention products of one shape share their memory."""

    def __init__(self, policy: PrismaticPolicy) -> None:
        self._policy = policy
        self._like = policy.language_model.lm_head.weight
        self._keys: dict[tuple[int, ...], Tensor] = {}

    def products(self, inputs: PrismaticInputs) -> Iterator[Product]:
        """All products of a decision but those of the value head, which is tiny."""
        policy = self._policy
        assert inputs.frames is not None
        batch, images, patches = len(inputs), inputs.frames.shape[0] * inputs.frames.shape[1], 0
        for tower in policy.vision_backbone.children():
            assert isinstance(tower, Tower)
            patches = images * tower.patches
            yield from self._vit(tower, images) if isinstance(tower, ViT) else self._convolutions(tower, images)
        yield from _linears(policy.projector, patches)
        if policy.proprio_projector is not None:
            yield from _linears(policy.proprio_projector, batch)
        columns, count = policy.prefix(inputs).last + 1, policy.config.tokens
        head = self._like[:BINS]
        if isinstance(policy, OpenVLA):
            yield from self._llama(batch, columns, columns // 2, 1)
            for step in range(1, count):
                yield from self._llama(batch, 1, columns + step, 1)
            yield from [Product((batch, head.shape[1]), head)] * count
        else:
            columns += count + 1
            yield from self._llama(batch, columns, columns, count)
            yield Product((batch * count, head.shape[1]), head)

    def _vit(self, tower: ViT, images: int) -> Iterator[Product]:
        columns = tower.patches + tower.prefix
        weight = tower.patch_embed.proj.weight.flatten(1)
        yield Product((images * tower.patches, weight.shape[1]), weight)
        blocks: list[Any] = list(tower.blocks)
        for block in blocks[:-1]:
            yield from _linears(block, images * columns)
            heads = block.attn.heads
            yield from self._attention(images * heads, columns, columns, tower.width // heads)

    def _convolutions(self, tower: nn.Module, images: int) -> Iterator[Product]:
        height, width = self._policy.config.image_size
        for layer in tower.modules():
            if isinstance(layer, nn.Conv2d):
                height, width = height // 2, width // 2
                weight = layer.weight.flatten(1)
                yield Product((images * height * width, weight.shape[1]), weight)

    def _llama(self, batch: int, columns: int, keys: int, read: int) -> Iterator[Product]:
        """A pass over `columns` that attend to `keys` on average; the last layer is read at `read` of them."""
        model = self._policy.language_model
        layers: list[Any] = list(model.model.layers)
        for index, layer in enumerate(layers):
            attention = layer.self_attn
            queries = read if index + 1 == len(layers) else columns
            for linear in (attention.k_proj, attention.v_proj):
                yield from _linears(linear, batch * columns)
            for module in (attention.q_proj, attention.o_proj, layer.mlp):
                yield from _linears(module, batch * queries)
            yield from self._attention(batch * model.config.num_attention_heads, queries, keys, attention.head_dim)

    def _attention(self, groups: int, queries: int, keys: int, size: int) -> Iterator[Product]:
        """Scores, and their product with the values."""
        for shape, left in (((groups, keys, size), size), ((groups, size, keys), keys)):
            if shape not in self._keys:
                self._keys[shape] = self._like.new_ones(shape)
            yield Product((groups, queries, left), self._keys[shape])


def _linears(module: nn.Module, rows: int) -> Iterator[Product]:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            yield Product((rows, layer.in_features), layer.weight)
