"""What steps of the policy are made of, measured on some entries of its parameters: how much of a gradient is signal,
and how many weights a step moves.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from treadle.config.on_policy import OnPolicyConfig
from treadle.config.schema import TrainConfig
from treadle.training.on_policy.batch import Samples
from treadle.training.ranks import ALONE, Ranks
from treadle.training.shards import is_sharded, own_rows

ENTRIES = 2**18
"""Of all parameters together, about so many entries are read: 1 MiB in float32."""


class Meters:
    """Measures at the first step of an update.

    Args:
        parameters: those of the policy that are trained.
        config: the run's settings.
        ranks: those that make the update.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: TrainConfig, ranks: Ranks = ALONE) -> None:
        assert isinstance(config.algorithm, OnPolicyConfig)
        self._signal = SignalMeter(parameters, config.algorithm.group_size, ranks)
        self._movement = StepMeter(parameters, ranks)
        self._every, self._warmup = config.algorithm.signal_every, config.critic_warmup
        self.metrics: dict[str, float] = {}
        """What was measured since `begin`."""
        self.signal: SignalMeter | None = None
        """It is to be shown the next minibatch's gradient, unless it is None."""
        self._iteration: int | None = None

    def begin(self, iteration: int) -> None:
        """An update begins, of a policy that has had `iteration` of them; one that has begun goes on."""
        if iteration == self._iteration:
            return
        self.metrics, self._iteration = {}, iteration
        self._signal.forget()
        # While only the critic learns, the policy's gradient is not one of its own loss.
        wanted = iteration >= self._warmup and self._every > 0 and iteration % self._every == 0
        self.signal = self._signal if wanted else None

    def drop(self) -> None:
        """The update that has begun will make no step."""
        self._iteration = self.signal = None

    def watch(self, step: Callable[[], object]) -> None:
        """Make a step. The first ends the measurements."""
        if self._iteration is None:
            step()
            return
        found = {"update/signal_share": self.signal.share() if self.signal is not None else None}
        found["update/unmoved_share"] = self._movement.watch(step)
        self.metrics = {name: x for name, x in found.items() if x is not None}
        self.drop()


class SignalMeter:
    """Measures how much of a step's gradient is signal, by the gradients of two halves of its decisions.

    The share of signal is `|E g|^2 / E |g|^2`. Of two independent gradients g and h of one size it is estimated by
    `2 g h / (g^2 + h^2)`, with scalar products: about their cosine, 1 without noise, 0 where there is nothing to learn
    from. It is that of half a step, s; a whole step's is about `2 s / (1 + s)`.

    Episodes of one half are of other slots than those of the other, and groups stay whole, because decisions of one
    episode or group are not independent.

    Args:
        parameters: those of the policy that are trained.
        group_size: neighbouring slots that are compared with each other.
        ranks: those that hold the batch.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group_size: int, ranks: Ranks = ALONE) -> None:
        self._parameters = parameters
        self._group_size = group_size
        self._ranks = ranks
        self._stride = _stride(parameters)
        self.forget()

    def forget(self) -> None:
        """Begin a measurement; there are no gradients."""
        self._last = [torch.zeros(()), torch.zeros(())]
        """The gradients as they were last noted: of whole parameters, and of shards."""
        self._sums = [list(self._last), list(self._last)]
        """Each half's gradients, likewise."""
        self._counts = [0, 0]
        """Each half's decisions on this rank."""

    def halves(self, samples: Samples, rows: Tensor) -> list[Tensor]:
        """Rows of samples, divided in two: of even groups of slots, and of odd ones."""
        odd = (samples.slots() // self._group_size % 2 == 1)[rows]
        return [rows[~odd], rows[odd]]

    def note(self, half: int, decisions: int) -> None:
        """Note what so many decisions of a half on this rank have added to the gradients."""
        self._counts[half] += decisions
        for kind in (False, True):
            now = self._entries(sharded=kind)
            self._sums[half][kind] = self._sums[half][kind] + now - self._last[kind]
            self._last[kind] = now

    def share(self) -> float | None:
        """The share of signal in the gradient of half a step; None where a half is empty."""
        counts = self._ranks.sum(torch.tensor(self._counts))
        if not bool((counts > 0).all()):
            return None
        products = torch.zeros(3, dtype=torch.float64)
        for sharded in sorted({is_sharded(parameter) for parameter in self._parameters}):
            pair = torch.stack([sums[sharded] for sums in self._sums]).cpu()
            # Ranks sum the gradients of whole parameters later; those of shards are sums already.
            found = _products(pair if sharded else self._ranks.sum(pair))
            products += self._ranks.sum(found) if sharded else found
        # A gradient is a sum over decisions, and the halves may differ in number.
        n, m = counts.tolist()
        squares, product = float(products[0]) / n**2 + float(products[1]) / m**2, float(products[2]) / (n * m)
        return 2 * product / squares if squares > 0 and math.isfinite(squares) else None

    def _entries(self, *, sharded: bool) -> Tensor:
        """Some entries of all gradients of one kind, [n] float32."""
        parts: list[Tensor] = []
        for parameter in self._parameters:
            if is_sharded(parameter) == sharded:
                chosen = _some(parameter if parameter.grad is None else parameter.grad, self._stride).float()
                parts.append(torch.zeros_like(chosen) if parameter.grad is None else chosen)
        return torch.cat(parts) if parts else torch.zeros(0)


class StepMeter:
    """Measures which share of the weights a step leaves as they are, though they have a gradient.

    Args:
        parameters: those of the policy that are trained.
        ranks: those that make the step.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks = ALONE) -> None:
        self._parameters = parameters
        self._ranks = ranks
        self._stride = _stride(parameters)

    @torch.no_grad()
    def watch(self, step: Callable[[], object]) -> float | None:
        """Make a step, and return the share; None where no weight has a gradient."""
        before = [
            (parameter, _some(parameter, self._stride).clone(), _some(parameter.grad, self._stride) != 0)
            for parameter in self._parameters
            if parameter.grad is not None
        ]
        step()
        counts = torch.zeros(2, dtype=torch.int64)
        if before:
            still = [((_some(p, self._stride) == old) & pulled).sum() for p, old, pulled in before]
            counts = torch.stack([torch.stack(still).sum(), torch.stack([x.sum() for *_, x in before]).sum()]).cpu()
        unmoved, pulled = self._ranks.sum(counts).tolist()
        return unmoved / pulled if pulled else None


def _stride(parameters: Sequence[nn.Parameter]) -> int:
    """How many entries apart those are that are read. It is odd, so that they are not all in one column."""
    total = sum(own_rows(parameter).numel() for parameter in parameters)
    return -(-total // ENTRIES) | 1


def _some(tensor: Tensor, stride: int) -> Tensor:
    """Some entries of a tensor's rows on this rank, [n]."""
    return own_rows(tensor).reshape(-1)[::stride]


def _products(pair: Tensor) -> Tensor:
    """The squares and the product of two vectors [2, n], as [3] float64."""
    first, second = pair.double()
    return torch.stack([first @ first, second @ second, first @ second])
