"""Memory of a policy, in bytes: its parameters, what training keeps for each of them, and activations of samples.

One formula for `treadle policy inspect` and `treadle plan`. It counts what tensors hold; a library's own memory, such
as a CUDA context, and gaps of an allocator come on top.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

WEIGHTS, GATHERED, REFERENCE, ADAPTERS = "weights", "weights gathered", "frozen reference", "adapters"
OLDER = "older weights that play"
GRADIENTS, MASTER, MOMENTS, AVERAGE = "gradients", "float32 master", "AdamW moments", "weight average"
ACTIVATIONS, COPIES = "activations", "copies of gradients at the step"
USES = (WEIGHTS, GATHERED, REFERENCE, ADAPTERS, OLDER, GRADIENTS, MASTER, MOMENTS, AVERAGE, ACTIVATIONS, COPIES)
"""What memory is for, in the order in which it is shown."""

Parts = Mapping[str, int]
"""Bytes by what they are for."""


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter, or the rows of it that a rank holds."""

    stored: int
    """Numbers of the weight, and of its gradient: rows of a shard are padded to those of the first rank."""
    own: int
    """Numbers that are updated here."""
    width: int
    """Bytes of each."""
    trained: bool = True
    adapter: bool = False
    shard: bool = False


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes of one sample."""

    between: int
    """What lies between the blocks in training, and is kept for the backward pass."""
    inside: int
    """What is kept of all blocks, unless they are computed again."""
    block: int
    """The same of the largest one, and what its backward pass takes besides."""
    waiting: int
    """Of a sample that acts, besides what is in a block."""
    acting: int
    """The largest block of a sample that acts."""
    at_once: int | None = None
    """Samples that go through a block at a time on a CPU, where they act; None for all."""

    def training(self, samples: int, recompute: bool) -> int:
        """Of a micro-batch."""
        return samples * (self.between + (self.block if recompute else max(self.inside, self.block)))

    def playing(self, samples: int, accelerated: bool) -> int:
        """Of one decision for so many slots."""
        through = samples if accelerated or self.at_once is None else min(samples, self.at_once)
        return samples * self.waiting + through * self.acting


def hold(name: str, parameter: nn.Parameter, rank: int = 0, ranks: int = 1) -> Held:
    """A parameter on one of the ranks that divide its rows as FSDP2 does: as many on each, fewer on the last ones."""
    rows = parameter.shape[0] if parameter.dim() else 1
    most = -(-rows // ranks)
    own, size = min(rows, (rank + 1) * most) - min(rows, rank * most), parameter.numel() // max(rows, 1)
    width, trained = parameter.element_size(), parameter.requires_grad
    return Held(most * size, own * size, width, trained, ".lora_" in name, shard=ranks > 1)


def keep(held: Iterable[Held], average: bool = False) -> dict[str, int]:
    """Bytes that last through training: a trained parameter has its gradient in its own type, two moments in float32,
    and below float32 a float32 master (`MasterAdamW`).
    """
    parts: dict[str, int] = dict.fromkeys((WEIGHTS, ADAPTERS, GRADIENTS, MASTER, MOMENTS, AVERAGE), 0)
    for each in held:
        parts[ADAPTERS if each.adapter else WEIGHTS] += each.stored * each.width
        if each.trained:
            parts[GRADIENTS] += each.stored * each.width
            parts[MASTER] += each.own * 4 * (each.width < 4)
            parts[MOMENTS] += each.own * 8
            parts[AVERAGE] += each.own * 4 * average
    return parts


def copies(held: Iterable[Held], ranks: int = 1) -> int:
    """Bytes that an update takes for a moment, when gradients are there: below float32 the gradient in float32, for
    the step, in place of the parameter's own. Ranks sum those of whole parameters in a float32 buffer, which they are
    copied into.
    """
    trained = [each for each in held if each.trained]
    step = sum(each.own * 4 - each.stored * each.width for each in trained if each.width < 4)
    joined = [each for each in trained if not each.shard] if ranks > 1 else []
    return max(step, sum(each.own * (8 if each.width < 4 else 4) for each in joined))


def peak(lasting: Parts, *moments: Parts) -> dict[str, int]:
    """What lasts, and the greatest of what is there for a moment."""
    return {**lasting, **max(moments, key=lambda parts: sum(parts.values()))}


def learn(policy: nn.Module, activations: Activations | None) -> dict[str, int]:
    """Bytes of a policy at the peak of an update in one process: a sample at a time, with gradient checkpointing."""
    held = [hold(name, parameter) for name, parameter in policy.named_parameters()]
    passing = activations.training(1, recompute=True) if activations else 0
    return peak(keep(held), {ACTIVATIONS: passing}, {COPIES: copies(held)})
