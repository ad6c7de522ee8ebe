import pytest
import torch
from torch import nn

from treadle.training.averaging import WeightAverage


def play(average: WeightAverage, parameter: nn.Parameter, *values: float) -> None:
    for value in values:
        parameter.data.fill_(value)
        average.update()


def test_the_average_by_hand():
    parameter = nn.Parameter(torch.full((2,), 100.0))
    average = WeightAverage([parameter], decay=0.5)
    play(average, parameter, 1.0, 2.0, 4.0)
    average.swap_in()
    assert parameter.tolist() == pytest.approx([(0.25 * 1 + 0.5 * 2 + 4) / 1.75] * 2)


def test_the_parameters_come_back_and_the_average_goes_on():
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    average = WeightAverage([parameter], decay=0.5)
    play(average, parameter, 1.0, 2.0)
    before = average.state_dict()["average"][0].clone()  # type: ignore[index]
    average.swap_in()
    # 5/3 has no bfloat16: the average itself stays as precise as it was.
    assert parameter.tolist() == [torch.tensor(5 / 3).bfloat16().item()] * 2
    average.swap_out()
    assert parameter.tolist() == [2.0] * 2
    assert torch.equal(average.state_dict()["average"][0], before)  # type: ignore[index, arg-type]
    play(average, parameter, 4.0)
    average.swap_in()
    assert parameter.tolist() == pytest.approx([(0.25 * 1 + 0.5 * 2 + 4) / 1.75] * 2, rel=1e-2)


def test_no_decay_keeps_the_last_weights_and_no_copy_of_them():
    parameter = nn.Parameter(torch.zeros(1))
    average = WeightAverage([parameter], decay=0.0)
    play(average, parameter, 1.0, 3.0)
    state = average.state_dict()
    assert state["average"] == []
    average.swap_in()
    assert parameter.item() == 3.0
    restored = WeightAverage([parameter], decay=0.0)
    restored.load_state_dict(state)
    restored.swap_in()
    assert parameter.item() == 3.0


def test_it_goes_on_from_its_state():
    one, two = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    first, second = (WeightAverage([p], decay=0.9) for p in (one, two))
    play(first, one, 1.0, 5.0)
    second.load_state_dict(first.state_dict())
    for average, parameter in ((first, one), (second, two)):
        play(average, parameter, 2.0)
        average.swap_in()
    assert torch.equal(one, two)
