"""How chains are drawn by the keys of samples, and what log-probs their stochastic steps have.

A temperature multiplies the noise: the level of a method, or a learned deviation. At 0 no step is stochastic.
Shapes: B samples, K steps, J stochastic ones that follow each other, H predicted actions, C executed ones, D padded
dimensions, A real ones, P and E of log-probs.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from treadle.data.noise import Keys, noise_key, normal
from treadle.errors import ConfigError
from treadle.policies.flow_matching.chain import (
    Joined,
    Noise,
    count_executed,
    draw_steps,
    gaussian_entropy,
    gaussian_log_prob,
    integrate,
    join_steps,
    run_chain,
    step_times,
    transition,
)
from treadle.policies.flow_matching.transitions import Transitions
from treadle.policies.sampling import Sampling, check_sampling

Drawn = Literal["one", "last", "all"]
"""Which steps are stochastic: one, drawn for each decision; the last, which ends in the actions; or all."""
Counted = Literal["executed", "all"]
"""Which log-probs count: of executed actions, each by itself, or of all H x D numbers as one set."""

_START, _DRAWS = 0x5345, 0x4452
"""Streams of a sample's random numbers: the chain's start, and its stochastic steps."""


class Expert(Protocol):
    """What gives a chain its direction."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, H, D] of states [B, H, D] at times [B]."""
        ...

    def deviation(self, x: Tensor, t: Tensor) -> Tensor:
        """The same of standard deviations; called where they are learned."""
        ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws chains, and scores them."""

    noise: Noise
    drawn: Drawn
    joined: Joined
    counted: Counted
    rows: int
    """H"""
    columns: int
    """D"""
    chunk: int
    """C"""
    action_dim: int
    """A"""

    @property
    def count(self) -> int:
        """J."""
        return self.noise.steps if self.drawn == "all" else 1

    @property
    def entries(self) -> tuple[int, int]:
        """(P, E)."""
        return (1, self.rows * self.columns) if self.counted == "all" else (self.chunk, self.action_dim)

    @property
    def numbers(self) -> int:
        """How many a packed decision has."""
        return Transitions.numbers(self.count, self.rows, self.columns)

    def draw(self, expert: Expert, keys: Keys, sampling: Sampling, device: torch.device) -> tuple[Tensor, Transitions]:
        """The end [B, H, D] of each sample's chain, and its stochastic steps: at temperature 0 none, with the start in
        their place. The start is the same at every temperature.
        """
        noise = self._at(sampling)
        shape = self.rows, self.columns
        start = torch.from_numpy(normal(noise_key(keys, _START), *shape)).to(device)
        if noise is None:
            nothing = torch.zeros(len(start), dtype=torch.long, device=device)
            return integrate(expert.velocity, start, self.noise.steps), Transitions(start[:, None], nothing)
        first, stochastic = self._choose_steps(keys, device)
        draws = torch.from_numpy(normal(noise_key(keys, _DRAWS), self.count, *shape)).to(device)
        draws = draws.expand(-1, noise.steps, -1, -1)

        def deviation(x: Tensor, t: Tensor) -> Tensor:
            return sampling.temperature * expert.deviation(x, t)

        learned = deviation if noise.method == "learned" else None
        chain = run_chain(expert.velocity, start, noise, stochastic, draws, learned)
        return chain[:, -1], Transitions.of(chain, first, self.count)

    def score(self, expert: Expert, transitions: Transitions, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [B, P, E] of stochastic steps, float32; one pass of the expert for each. Raises
        ConfigError at temperature 0.
        """
        noise = self._at(sampling)
        if noise is None:
            raise ConfigError(
                "sampling.temperature: 0; without noise every log-prob is 0 and nothing is learned: use 1"
            )
        log_probs: list[Tensor] = []
        entropies: list[Tensor] = []
        for j in range(transitions.states.shape[1] - 1):
            before, after, index = transitions.states[:, j], transitions.states[:, j + 1], transitions.first + j
            t = step_times(noise.steps, index, before.dtype)
            velocity = expert.velocity(before, t)
            learned = sampling.temperature * expert.deviation(before, t) if noise.method == "learned" else None
            mean, deviation = transition(before, velocity, index, noise, learned)
            log_probs.append(gaussian_log_prob(after, mean, deviation))
            entropies.append(gaussian_entropy(deviation).expand_as(before))
        return self._count(log_probs), self._count(entropies)

    def _at(self, sampling: Sampling) -> Noise | None:
        """The noise at a temperature, None at 0. Raises ConfigError for what a chain of noise does not have."""
        check_sampling(sampling)
        if sampling.top_k or sampling.top_p != 1:
            raise ConfigError(
                f"sampling: {sampling}; allowed for this policy: a temperature, which multiplies its noise, without "
                "top_k and top_p"
            )
        if sampling.temperature == 0:
            return None
        return replace(self.noise, level=self.noise.level * sampling.temperature)

    def _choose_steps(self, keys: Keys, device: torch.device) -> tuple[Tensor, Tensor]:
        """The first stochastic step of each sample [B], and which steps are stochastic [B, K]."""
        steps = self.noise.steps
        if self.drawn == "all":
            every = torch.ones(len(keys), steps, dtype=torch.bool, device=device)
            return torch.zeros(len(keys), dtype=torch.long, device=device), every
        last = torch.full((len(keys),), steps - 1)
        first = (last if self.drawn == "last" else draw_steps(keys, self.noise)).to(device)
        return first, nn.functional.one_hot(first, steps).bool()

    def _count(self, steps: list[Tensor]) -> Tensor:
        """Numbers [B, H, D] of each of J steps, joined, to the entries [B, P, E] that count."""
        joined = join_steps(torch.stack(steps, 1), self.joined)
        if self.counted == "all":
            return joined.flatten(1)[:, None]
        return count_executed(joined, self.chunk, self.action_dim)
