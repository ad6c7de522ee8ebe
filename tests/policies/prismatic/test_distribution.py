import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import ConfigError
from treadle.policies.prismatic.action_tokens import draw, entropy, log_distribution, take
from treadle.policies.sampling import Sampling

LOGITS = torch.log(torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]))

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.6]),
    top_k=st.sampled_from([0, 1, 5, 300]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
)


def probabilities(sampling: Sampling) -> list[float]:
    return log_distribution(LOGITS, sampling).exp()[0, 0].tolist()


def test_by_hand() -> None:
    assert probabilities(Sampling()) == pytest.approx([0.5, 0.3, 0.15, 0.05])
    squares = [0.25, 0.09, 0.0225, 0.0025]
    assert probabilities(Sampling(temperature=0.5)) == pytest.approx([x / sum(squares) for x in squares])
    assert probabilities(Sampling(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0])
    assert probabilities(Sampling(top_p=0.6)) == pytest.approx([0.625, 0.375, 0, 0])
    assert probabilities(Sampling(top_p=0.4)) == pytest.approx([1, 0, 0, 0])
    # After top-k the first has .625 of the mass, so that .6 is reached by it alone.
    assert probabilities(Sampling(top_k=2, top_p=0.6)) == pytest.approx([1, 0, 0, 0])
    assert probabilities(Sampling(temperature=0, top_k=1)) == pytest.approx([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize(("noise", "row"), [(0.0, 0), (0.499, 0), (0.501, 1), (0.799, 1), (0.801, 2), (0.999999, 3)])
def test_inverse_distribution_function(noise: float, row: int) -> None:
    log_probs = log_distribution(LOGITS, Sampling())
    assert draw(log_probs, Sampling(), torch.tensor([[noise]])).item() == row


def test_rows_cut_off_are_never_drawn() -> None:
    sampling = Sampling(top_k=2)
    logits = LOGITS.flip(-1).expand(1, 10_001, 4)
    rows = draw(log_distribution(logits, sampling), sampling, torch.linspace(0, 1 - 2**-24, 10_001)[None])
    assert set(rows.unique().tolist()) == {2, 3}
    assert (rows == 3).float().mean().item() == pytest.approx(0.625, abs=1e-3)


def test_entropy_and_its_gradient_are_finite() -> None:
    sampling = Sampling(top_k=2)
    logits = LOGITS.clone().requires_grad_()
    value = entropy(log_distribution(logits, sampling), sampling)
    assert value.item() == pytest.approx(-(0.625 * math.log(0.625) + 0.375 * math.log(0.375)))
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    uniform = entropy(log_distribution(torch.zeros(1, 1, 256), Sampling()), Sampling())
    assert uniform.item() == pytest.approx(math.log(256))


def test_a_given_token_is_never_cut_off() -> None:
    tokens = torch.tensor([[3]])
    log_probs = log_distribution(LOGITS, Sampling(top_k=1), tokens)
    assert take(log_probs, tokens).item() == pytest.approx(math.log(0.05 / 0.55), abs=1e-5)


@given(SAMPLINGS, st.integers(0, 2**31))
def test_evaluation_agrees_with_acting(sampling: Sampling, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, 256, generator=generator) * 4
    acted = log_distribution(logits, sampling)
    rows = draw(acted, sampling, torch.rand(4, 6, generator=generator))
    evaluated = log_distribution(logits, sampling, rows)
    torch.testing.assert_close(take(evaluated, rows), take(acted, rows), atol=1e-6, rtol=0)
    assert take(acted, rows).isfinite().all()
    torch.testing.assert_close(acted.exp().sum(-1), torch.ones(4, 6))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_values_out_of_range(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"sampling\.{name}: .*; allowed"):
        Sampling(**wrong)
