"""The gate of reinforcement learning by chains: each test is something that silently failed somewhere."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies.flow_matching.chain import (
    Noise,
    count_executed,
    draw_steps,
    euler,
    gaussian_entropy,
    gaussian_log_prob,
    integrate,
    join_steps,
    run_chain,
    step_times,
    transition,
)


def silent(method: str, steps: int) -> Noise:
    """Noise of level 0, which users are refused."""
    noise = Noise(method, steps=steps)
    object.__setattr__(noise, "level", 0.0)
    return noise


class Bandit:
    """A linear field of two entries, of which the first is executed; the second moves the first."""

    def __init__(self, parameters: Tensor) -> None:
        self.p = parameters

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        a, b = x[:, 0, 0], x[:, 1, 0]
        first = self.p[0] * a + self.p[1] * b + self.p[2]
        second = self.p[3] * b + self.p[4] * t + self.p[5]
        return torch.stack([first, second], 1)[..., None]


THETA = torch.tensor([0.3, 0.9, -0.4, 0.5, 0.7, 0.2], dtype=torch.float64)


def log_probs(theta: Tensor, chain: Tensor, noise: Noise) -> Tensor:
    """[B, K, H, D] of all steps."""
    parts = []
    for k in range(noise.steps):
        index = torch.full((len(chain),), k)
        x = chain[:, k]
        velocity = Bandit(theta)(x, step_times(noise.steps, index, x.dtype))
        parts.append(gaussian_log_prob(chain[:, k + 1], *transition(x, velocity, index, noise)))
    return torch.stack(parts, 1)


def sampled(count: int, noise: Noise, theta: Tensor = THETA, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    start = torch.randn(count, 2, 1, generator=rng, dtype=torch.float64)
    draws = torch.randn(count, noise.steps, 2, 1, generator=rng, dtype=torch.float64)
    return run_chain(Bandit(theta), start, noise, torch.ones(count, noise.steps, dtype=torch.bool), draws)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(3, [0.500, 0.408, 0.204]), (4, [0.500, 0.433, 0.250, 0.144]), (5, [0.500, 0.447, 0.274, 0.183, 0.112])],
)
def test_the_deviation_of_each_step_is_as_published(steps: int, expected: list[float]):
    x = torch.zeros(steps, 1, 1, dtype=torch.float64)
    _, std = transition(x, x, torch.arange(steps), Noise("sde", 0.5, steps))
    np.testing.assert_allclose(std[:, 0, 0], expected, atol=5.1e-4)


@pytest.mark.parametrize("method", ["sde", "cps"])
def test_level_zero_is_the_chain_without_noise(method: str):
    start = torch.randn(16, 2, 1, dtype=torch.float64)
    draws = torch.randn(16, 5, 2, 1, dtype=torch.float64)
    chain = run_chain(Bandit(THETA), start, silent(method, 5), torch.ones(16, 5, dtype=torch.bool), draws)
    torch.testing.assert_close(chain[:, -1], integrate(Bandit(THETA), start, 5), atol=1e-14, rtol=0)


def test_the_mean_of_sde_is_eulers_step_and_the_score():
    noise, index = Noise("sde", 0.7, 4), torch.tensor([1, 2, 3])
    x, v = torch.randn(2, 3, 2, 1, dtype=torch.float64)
    t = step_times(4, index, torch.float64)[:, None, None]
    mean, std = transition(x, v, index, noise)
    score = -(x + (1 - t) * v) / t
    torch.testing.assert_close(mean, euler(x, v, 4) + 0.5 * std.square() * score)


def test_cps_keeps_the_coefficients():
    """The share of noise after a step is t - d: cos and sin of one angle."""
    x, v = torch.zeros(3, 1, 1, dtype=torch.float64), torch.ones(3, 1, 1, dtype=torch.float64)
    index = torch.arange(3)
    mean, std = transition(x, v, index, Noise("cps", 0.5, 4))
    after = torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)
    t = after + 0.25
    noisy = (mean[:, 0, 0] + t * (1 - after)) / (1 - t).clamp(min=1e-9)
    np.testing.assert_allclose((noisy.square() + std[:, 0, 0].square())[1:], after.square()[1:])
    np.testing.assert_allclose(std[:, 0, 0], after * math.sin(math.pi / 4))


@pytest.mark.parametrize("steps", [3, 10, 49])
def test_the_last_step_of_cps_has_no_log_prob(steps: int):
    """Also where 1 - (K - 1) / K - 1 / K is not 0 once it is rounded."""
    x, last = torch.randn(2, 3, 2, dtype=torch.float64), torch.tensor([steps - 1, steps - 1])
    mean, std = transition(x, x, last, Noise("cps", 0.5, steps))
    assert not std.any()
    assert not gaussian_log_prob(mean + 1, mean, std).any()


def test_a_learned_deviation_is_drawn_around_eulers_step():
    x, v, learned = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    mean, std = transition(x, v, torch.tensor([0, 2]), Noise("learned", steps=4), learned.abs())
    torch.testing.assert_close(mean, euler(x, v, 4))
    assert torch.equal(std, learned.abs())
    with pytest.raises(ValueError, match="deviation"):
        transition(x, v, torch.tensor([0, 2]), Noise("learned", steps=4))


def test_only_stochastic_steps_are_drawn():
    start, draws = torch.randn(2, 2, 1, dtype=torch.float64), torch.ones(2, 4, 2, 1, dtype=torch.float64)
    drawn = torch.tensor([[False, True, False, False], [False, False, False, False]])
    chain = run_chain(Bandit(THETA), start, Noise("sde", 0.5, 4), drawn, draws)
    plain = run_chain(Bandit(THETA), start, Noise("sde", 0.5, 4), drawn & False, draws)
    torch.testing.assert_close(plain[:, -1], integrate(Bandit(THETA), start, 4))
    assert torch.equal(chain[1], plain[1])
    assert torch.equal(chain[0, :2], plain[0, :2])
    assert not torch.isclose(chain[0, 2], plain[0, 2]).any()


def test_steps_are_joined_by_sum_or_mean():
    steps = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert join_steps(steps, "sum").tolist() == [[4.0, 8.0]]
    assert join_steps(steps, "mean").tolist() == [[2.0, 4.0]]


def test_log_prob_and_entropy_are_those_of_torch():
    mean, after = torch.randn(2, 4, 3, 2)
    std = torch.rand(4, 3, 2) + 0.05
    normal = torch.distributions.Normal(mean, std)
    torch.testing.assert_close(gaussian_log_prob(after, mean, std), normal.log_prob(after))
    torch.testing.assert_close(gaussian_entropy(std), normal.entropy())


def test_nothing_flows_where_there_is_no_deviation():
    mean = torch.ones(1, requires_grad=True)
    std = torch.zeros(1, requires_grad=True)
    found = gaussian_log_prob(torch.full((1,), 3.0), mean, std)
    found.sum().backward()
    assert (float(found.detach()), float(mean.grad), float(std.grad)) == (0, 0, 0)


@pytest.mark.parametrize("level", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("method", ["sde", "cps"])
def test_no_noise_and_endless_noise_are_refused(method: str, level: float):
    with pytest.raises(ConfigError, match="times the temperature: found"):
        Noise(method, level)


def test_an_angle_beyond_a_quarter_turn_is_refused():
    with pytest.raises(ConfigError, match="at most 1"):
        Noise("cps", 1.1)


def test_the_expected_score_is_zero():
    theta = THETA.clone().requires_grad_()
    noise = Noise("sde", 0.5, 4)
    chain = sampled(20_000, noise)

    def per_sample(p: Tensor, one: Tensor) -> Tensor:
        return log_probs(p, one[None], noise).sum()

    scores = torch.func.vmap(torch.func.grad(per_sample), (None, 0))(theta.detach(), chain)
    error = scores.std(0) / math.sqrt(len(scores))
    assert bool((scores.mean(0).abs() < 4 * error).all()), (scores.mean(0), error)


@pytest.mark.parametrize("method", ["sde", "cps"])
def test_ratios_are_one_before_an_update_in_any_batch_and_order(method: str):
    noise = Noise(method, 0.5, 4)
    chain = sampled(64, noise).float()
    theta = THETA.float()
    whole = log_probs(theta, chain, noise)
    order = torch.randperm(64)
    parts = torch.cat([log_probs(theta, part, noise) for part in chain[order].split(7)])
    assert float((parts - whole[order]).sum((1, 2, 3)).expm1().abs().max()) < 1e-6


def gradients(counted: str) -> tuple[Tensor, Tensor, Tensor]:
    """The policy gradient, its standard error, and finite differences of the mean reward, all in float64."""
    noise, count, h = Noise("sde", 0.5, 4), 200_000, 1e-4

    def reward(chain: Tensor) -> Tensor:
        return -(chain[:, -1, 0, 0] - 1).square()

    chain = sampled(count, noise)
    advantage = reward(chain) - reward(chain).mean()
    estimates = []
    for part, weight in zip(chain.split(50_000), advantage.split(50_000), strict=True):

        def per_sample(p: Tensor, one: Tensor) -> Tensor:
            steps = join_steps(log_probs(p, one[None], noise), "sum")
            return (steps if counted == "all" else count_executed(steps, 1, 1)).sum()

        score = torch.func.vmap(torch.func.grad(per_sample), (None, 0))(THETA, part)
        estimates.append(score * weight[:, None])
    estimate = torch.cat(estimates)
    # The same draws on both sides, so their difference has little noise.
    exact = []
    for i in range(len(THETA)):
        step = torch.zeros_like(THETA)
        step[i] = h
        above, below = (reward(sampled(count, noise, THETA + sign * step)).mean() for sign in (1, -1))
        exact.append((above - below) / (2 * h))
    return estimate.mean(0), estimate.std(0) / math.sqrt(count), torch.stack(exact)


def test_the_policy_gradient_is_that_of_finite_differences_where_all_entries_count():
    found, error, exact = gradients("all")
    assert bool(((found - exact).abs() < 4 * error + 0.01 * exact.abs()).all()), (found, exact, error)


def test_counting_executed_entries_alone_is_biased():
    """The entry that is not executed moves the executed one: its three parameters get no gradient at all."""
    found, error, exact = gradients("executed")
    torch.testing.assert_close(found[3:], torch.zeros(3, dtype=torch.float64))
    _, whole_error, _ = gradients("all")
    assert bool((exact[3:].abs() > 4 * whole_error[3:]).all()), (found, exact, whole_error)
    assert bool(((found - exact)[:3].abs() < 4 * error[:3] + 0.01 * exact[:3].abs()).all())


def test_each_sample_has_its_own_stochastic_step_whatever_the_batch():
    noise = Noise("sde", 0.5, 4)
    keys = noise_key(np.arange(40_000))
    steps = draw_steps(keys, noise)
    shares = torch.bincount(steps, minlength=4) / len(steps)
    assert bool(((shares - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / len(steps))).all())
    assert torch.equal(draw_steps(keys[100:107], noise), steps[100:107])
    assert int(draw_steps(keys, Noise("cps", 0.5, 4)).max()) == 2


def test_marginals_of_sde_are_those_of_the_ode():
    """Of a Gaussian target N(2, 0.5^2), whose velocity is known: 200 steps leave its mean and deviation."""
    mu, sigma, noise = 2.0, 0.5, Noise("sde", 0.5, 200)

    def field(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None]
        variance = (1 - t) ** 2 * sigma**2 + t**2
        slope = (t - (1 - t) * sigma**2) / variance
        return -mu + slope * (x - (1 - t) * mu)

    rng = torch.Generator().manual_seed(1)
    start = torch.randn(20_000, 1, 1, generator=rng, dtype=torch.float64)
    draws = torch.randn(20_000, 200, 1, 1, generator=rng, dtype=torch.float64)
    end = run_chain(field, start, noise, torch.ones(20_000, 200, dtype=torch.bool), draws)[:, -1]
    ode = integrate(field, start, 200)
    for found in (end, ode):
        assert abs(float(found.mean()) - mu) < 0.02
        assert abs(float(found.std()) - sigma) < 0.02
