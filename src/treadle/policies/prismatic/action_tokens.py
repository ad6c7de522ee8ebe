"""Actions as tokens, the last 256 ids of the vocabulary, and the one definition of the distribution over them, for
acting and for evaluating.

Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A tokens, R = 256 action rows. Source: OpenVLA,
arXiv:2406.09246, section 3.2.
"""

import torch
from torch import Tensor

from treadle.policies.prismatic.statistics import Range
from treadle.policies.sampling import Sampling

BINS = 256
"""Action tokens; they delimit BINS - 1 bins."""


class ActionCodec:
    """Action tokens to actions and back. A higher id is a lower value."""

    def __init__(self, vocabulary: int, chunk: int, scale: Range) -> None:
        """`vocabulary`: ids before the padded end; the action tokens are the last 256 of them."""
        self.vocabulary = vocabulary
        self.chunk = chunk
        self.scale = scale
        self._edges = torch.linspace(-1.0, 1.0, BINS, dtype=torch.float64)
        self._centres = (self._edges[1:] + self._edges[:-1]) / 2

    @property
    def first_id(self) -> int:
        """The lowest action token id; `id - first_id` is the row among the 256."""
        return self.vocabulary - BINS

    def normalized(self, tokens: Tensor) -> Tensor:
        """Bin centres in (-1, 1) of token ids [...], float64 [...]."""
        index = (self.vocabulary - tokens - 1).clamp(0, BINS - 2)
        return self._centres.to(tokens.device)[index]

    def quantize(self, normalized: Tensor) -> Tensor:
        """Token ids of values in [-1, 1], clipped; the centre of the bin a value lies in is the nearest one."""
        values = normalized.to(torch.float64).clamp(-1.0, 1.0)
        return self.vocabulary - torch.bucketize(values, self._edges.to(values.device), right=True)

    def decode(self, tokens: Tensor) -> Tensor:
        """Token ids [B, K] to un-normalised actions [B, C, A], float64."""
        values = self.normalized(tokens).unflatten(-1, (self.chunk, self.scale.size))
        return self.scale.unnormalize(values)

    def encode(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest token ids [B, K]."""
        return self.quantize(self.scale.normalize(actions)).flatten(-2)


def soft_labels(rows: Tensor, classes: int, width: float) -> Tensor:
    """Labels [N] to distributions [N, classes]: a Gaussian of standard deviation `width`, in bins, around each label.

    Bins are ordered, and a plain label calls the neighbour of the right one as wrong as the farthest (HL-Gauss,
    Imani and White 2018).
    """
    distance = torch.arange(classes, device=rows.device) - rows[:, None]
    return torch.softmax(-0.5 * (distance / width) ** 2, dim=-1)


def log_distribution(logits: Tensor, sampling: Sampling, tokens: Tensor | None = None) -> Tensor:
    """Log-probabilities [B, K, R] float32 of `logits` [B, K, R] under temperature, then top-k, then top-p.

    Temperature 0 acts greedily, and has the log-probs of temperature 1 without top-k and top-p: those of a point mass
    would carry no information. `tokens` [B, K], rows that were drawn earlier, are never cut off by top-k or top-p, so
    that neither rounding nor an update of the weights can turn one of them into minus infinity.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return torch.log_softmax(logits, dim=-1)
    logits = logits / sampling.temperature if sampling.temperature != 1 else logits
    keep = _kept(logits.detach(), sampling)
    if keep is not None:
        if tokens is not None:
            keep = keep.scatter(-1, tokens.unsqueeze(-1), True)
        logits = logits.masked_fill(~keep, -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def draw(log_probs: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """Rows [B, K] of `log_probs` [B, K, R]: the most likely for temperature 0, else by inverse distribution function
    of `noise` [B, K] in [0, 1), drawn afresh where None.
    """
    if sampling.temperature == 0:
        return log_probs.argmax(dim=-1)
    if noise is None:
        noise = torch.rand(log_probs.shape[:-1], device=log_probs.device)
    cumulative = log_probs.double().exp().cumsum(dim=-1)
    threshold = noise.double().unsqueeze(-1) * cumulative[..., -1:]
    rows = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return rows.clamp(max=log_probs.shape[-1] - 1)


def take(log_probs: Tensor, rows: Tensor) -> Tensor:
    """Log-probs [B, K] of `rows` [B, K] among `log_probs` [B, K, R]."""
    return log_probs.gather(-1, rows.unsqueeze(-1)).squeeze(-1)


def entropy(log_probs: Tensor, sampling: Sampling) -> Tensor:
    """Entropy [B, K] in nats of the `log_distribution` [B, K, R] of `sampling`."""
    probabilities = log_probs.exp()
    if sampling.temperature > 0 and (sampling.top_k or sampling.top_p < 1):
        # A row that was cut off has log-prob -inf; its term, and its gradient, is 0.
        log_probs = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return -(probabilities * log_probs).sum(dim=-1)


def _kept(logits: Tensor, sampling: Sampling) -> Tensor | None:
    """Bool [B, K, R]: what top-k and top-p keep; None for all."""
    rows = logits.shape[-1]
    limit_k = 0 < sampling.top_k < rows
    if not limit_k and sampling.top_p == 1:
        return None
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if limit_k:
        kept[..., sampling.top_k :] = False
        ordered = ordered.masked_fill(~kept, -torch.inf)
    if sampling.top_p < 1:
        probabilities = ordered.softmax(dim=-1)
        # A row is kept while the mass before it has not reached top_p, so the most likely one always is.
        kept &= probabilities.cumsum(dim=-1) - probabilities < sampling.top_p
    return torch.zeros_like(kept).scatter(-1, order, kept)
