"""The one definition of the distribution over action tokens, for acting and for evaluating.

Shapes: B samples, K action tokens, R = 256 action rows.
"""

import torch
from torch import Tensor

from treadle.errors import ConfigError
from treadle.policies.protocol import Sampling


def log_distribution(logits: Tensor, sampling: Sampling, tokens: Tensor | None = None) -> Tensor:
    """Log-probabilities [B, K, R] float32 of `logits` [B, K, R] under temperature, then top-k, then top-p.

    Temperature 0 acts greedily, and has the log-probs of temperature 1 without top-k and top-p: those of a point mass
    would carry no information. `tokens` [B, K], rows that were drawn earlier, are never cut off by top-k or top-p, so
    that neither rounding nor an update of the weights can turn one of them into minus infinity.
    """
    check(sampling)
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


def check(sampling: Sampling) -> None:
    """Raises ConfigError for values outside their range."""
    if not sampling.temperature >= 0:
        raise ConfigError(f"sampling.temperature: {sampling.temperature}; allowed: 0 (greedy) or more")
    if sampling.top_k < 0:
        raise ConfigError(f"sampling.top_k: {sampling.top_k}; allowed: 0 (all) or more")
    if not 0 < sampling.top_p <= 1:
        raise ConfigError(f"sampling.top_p: {sampling.top_p}; allowed: above 0, at most 1 (all)")


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
