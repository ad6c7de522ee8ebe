"""Chains are drawn by keys, at any temperature, and scored as they were drawn."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies.flow_matching.chain import Noise, integrate
from treadle.policies.flow_matching.sampler import Sampler
from treadle.policies.sampling import Sampling

KEYS = noise_key(3, np.arange(5))
CPU = torch.device("cpu")


class Linear:
    """Velocities -x + t, and deviations 0.1 everywhere."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return -x + t[:, None, None]

    def deviation(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, 0.1)


def sampler(noise: Noise, **settings: Any) -> Sampler:
    fields: dict[str, Any] = {"drawn": "one", "joined": "sum", "counted": "executed"}
    return Sampler(noise=noise, **(fields | settings), rows=3, columns=4, chunk=2, action_dim=3)


@pytest.mark.parametrize("drawn", ["one", "last", "all"])
@pytest.mark.parametrize("method", ["sde", "cps", "learned"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_multiplies_the_noise(method: Any, drawn: str, temperature: float):
    """As a level, or a deviation, of that size draws and scores."""
    if (method, drawn) == ("cps", "last"):
        return
    plain = sampler(Noise(method, 0.4, 4), drawn=drawn)
    other = replace(plain, noise=Noise(method, 0.4 * temperature, 4))
    expert: Any = Linear()
    if method == "learned":
        expert.deviation = lambda x, t: torch.full_like(x, 0.1 * temperature)
    end, steps = plain.draw(Linear(), KEYS, Sampling(temperature=temperature), CPU)
    wanted, same = other.draw(expert, KEYS, Sampling(), CPU)
    torch.testing.assert_close(end, wanted)
    torch.testing.assert_close(steps.states, same.states)
    for one, two in zip(
        plain.score(Linear(), steps, Sampling(temperature=temperature)),
        other.score(expert, same, Sampling()),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
        assert one.shape == (5, *plain.entries) == (5, 2, 3)


def test_at_temperature_0_nothing_is_drawn():
    chosen = sampler(Noise("sde", 0.5, 4), drawn="all")
    still = Sampling(temperature=0)
    end, steps = chosen.draw(Linear(), KEYS, still, CPU)
    _, noisy = chosen.draw(Linear(), KEYS, Sampling(), CPU)
    assert torch.equal(steps.states[:, 0], noisy.states[:, 0])
    assert torch.equal(end, integrate(Linear().velocity, noisy.states[:, 0], 4))
    with pytest.raises(ConfigError, match="nothing is learned"):
        chosen.score(Linear(), noisy, still)


def test_the_last_step_is_the_actions_density():
    """Of a learned deviation around Euler's step from t = 1/K; nothing before it is drawn."""
    chosen = sampler(Noise("learned", steps=4), drawn="last")
    end, steps = chosen.draw(Linear(), KEYS, Sampling(), CPU)
    assert steps.first.tolist() == [3] * 5
    assert steps.states.shape == (5, 2, 3, 4)
    _, everything = sampler(Noise("sde", 0.5, 4), drawn="all").draw(Linear(), KEYS, Sampling(temperature=0), CPU)
    x = everything.states[:, 0]
    for k in range(3):
        x = x + (x - (1 - k / 4)) / 4
    torch.testing.assert_close(steps.states[:, 0], x)
    mean = x + (x - 0.25) / 4
    log_probs, entropy = chosen.score(Linear(), steps, Sampling())
    torch.testing.assert_close(log_probs, Normal(mean, 0.1).log_prob(end)[:, :2, :3])
    torch.testing.assert_close(entropy, torch.full((5, 2, 3), 0.5 * math.log(2 * math.pi * math.e) + math.log(0.1)))


def test_a_temperature_above_the_range_of_a_method_is_refused():
    with pytest.raises(ConfigError, match=r"policy\.options\.level, times the temperature: found 1\.2"):
        sampler(Noise("cps", 0.6, 4)).draw(Linear(), KEYS, Sampling(temperature=2), CPU)
