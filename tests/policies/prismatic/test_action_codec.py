import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treadle.policies.prismatic.action_tokens import ActionCodec, soft_labels
from treadle.policies.prismatic.statistics import Range


def interval(low: list[float], high: list[float], mask: list[bool]) -> Range:
    return Range(torch.tensor(low).double(), torch.tensor(high).double(), torch.tensor(mask))


@pytest.fixture
def codec() -> ActionCodec:
    return ActionCodec(32000, 1, interval([-1.0], [1.0], [False]))


def test_a_higher_id_is_a_lower_value(codec: ActionCodec) -> None:
    # Centres of 255 bins of width 2/255: -1 + 1/255, ..., 1 - 1/255. Both of the lowest ids mean the highest centre.
    tokens = torch.tensor([31999, 31998, 31872, 31745, 31744])
    expected = [-1 + 1 / 255, -1 + 3 / 255, 0.0, 1 - 1 / 255, 1 - 1 / 255]
    torch.testing.assert_close(
        codec.normalized(tokens), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_quantize_is_numpys_digitize(codec: ActionCodec) -> None:
    values = np.concatenate([np.linspace(-1.2, 1.2, 1001), np.linspace(-1, 1, 256)])
    expected = 32000 - np.digitize(np.clip(values, -1, 1), np.linspace(-1, 1, 256))
    # Edges of bins may lie one unit in the last place apart in the two libraries.
    away_from_edges = np.abs((values + 1) * 127.5 - np.round((values + 1) * 127.5)) > 1e-9
    got = codec.quantize(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(got[away_from_edges], expected[away_from_edges])
    assert codec.quantize(torch.tensor([-1.0, 1.0])).tolist() == [31999, 31744]


@given(st.integers(0, 254))
def test_centres_are_fixed_points(index: int) -> None:
    codec = ActionCodec(768, 1, interval([-1.0], [1.0], [False]))
    token = torch.tensor([768 - 1 - index])
    assert codec.quantize(codec.normalized(token)).tolist() == token.tolist()


def test_chunks_are_action_after_action() -> None:
    codec = ActionCodec(768, 2, interval([0.0, -2.0], [10.0, 2.0], [True, False]))
    actions = torch.tensor([[[0.0, 1.0], [10.0, -1.0]]])
    # The 1e-8 that the official code adds to a range keeps its end inside the last bin; unscaled, the end is beyond it.
    assert codec.encode(actions).tolist() == [[767, 512, 513, 767]]
    decoded = codec.decode(torch.tensor([[767, 512, 512, 767]]))
    torch.testing.assert_close(decoded, actions.double(), atol=0.03, rtol=0)
    assert decoded[0, 0, 0].item() == pytest.approx(10 * 0.5 / 255, abs=1e-6)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(0.01, 3))
def test_normalize_round_trip(values: list[float], width: float) -> None:
    scale = interval([-1.0, 0.5, 2.0], [-1.0 + width, 0.5 + width, 2.0 + width], [True, True, False])
    x = torch.tensor(values).double()
    torch.testing.assert_close(scale.unnormalize(scale.normalize(x)), x)


def test_normalize_by_hand() -> None:
    scale = interval([-1.0, 0.0], [3.0, 1.0], [True, False])
    assert scale.normalize(torch.tensor([0.0, 0.7])).tolist() == pytest.approx([-0.5, 0.7], abs=1e-7)
    assert scale.unnormalize(torch.tensor([0.0, 0.7])).tolist() == pytest.approx([1.0, 0.7], abs=1e-7)


def test_soft_labels_are_gaussians_around_the_label() -> None:
    # width 1: weights exp(-d^2 / 2), so 1, e^-0.5, e^-2 at distances 0, 1, 2; normalised over the classes that exist.
    soft = soft_labels(torch.tensor([0, 1]), classes=3, width=1.0)
    near, far = math.exp(-0.5), math.exp(-2)
    expected = torch.tensor([[1, near, far], [near, 1, near]])
    torch.testing.assert_close(soft, expected / expected.sum(1, keepdim=True))
    assert soft_labels(torch.tensor([5]), 256, 0.01)[0, 5] == 1
