"""What pre-training of perception asks for."""

import pytest
import torch
from torch import nn

from treadle.training.grounding import DetectionHead, GroundingHead


def zeros(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_the_patch_that_is_sure_tells_where_a_thing_is():
    head = DetectionHead(width=2, classes=2)
    zeros(head.vote)
    zeros(head.place)
    with torch.no_grad():
        # Each feature votes for one class; the first tells y of the first class, the second z of the second.
        head.vote.weight.copy_(torch.tensor([[100.0, 0.0], [0.0, 100.0]]))
        head.place.weight[1, 0] = 1.0
        head.place.weight[5, 1] = 2.0
    places = head(torch.tensor([[[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]]))
    torch.testing.assert_close(places, torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 6.0]]]))


def test_the_loss_of_grounding_by_hand():
    head, wanted = GroundingHead(zeros(nn.Linear(1, 6))), torch.tensor([[[0.03, 0.04, 0.0], [0.0, 0.0, 0.0]]])
    loss, error = head.loss(torch.zeros(1, 2, 1), wanted)
    # Smooth L1 with beta 0.1 in units of 10 cm: (0.3 - 0.05) + (0.4 - 0.05), over six numbers.
    assert loss.item() == pytest.approx(0.6 / 6)
    torch.testing.assert_close(error, torch.tensor([[0.05, 0.0]]))
