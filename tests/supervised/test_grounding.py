"""What pre-training of perception asks for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gaussian_policy import GaussianPolicy
from miniature import IMAGE, make_policy
from treadle.supervised.grounding import (
    DetectionHead,
    Groundable,
    Grounding,
    named_loss,
    pretrain_jointly,
    pretrain_vision,
)


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
    wanted = torch.tensor([[[0.03, 0.04, 0.0], [0.0, 0.0, 0.0]]])
    loss, error = named_loss(torch.zeros(1, 2, 2, 3), wanted)
    # Smooth L1 with beta 0.1 in units of 10 cm: (0.3 - 0.05) + (0.4 - 0.05), over six numbers.
    assert loss.item() == pytest.approx(0.6 / 6)
    torch.testing.assert_close(error, torch.tensor([[0.05, 0.0]]))


class Balls:
    """Scenes of one ball in one of two corners, white on black; the instruction names it alone."""

    things = asked = ("ball",)
    class_count = 1

    def __init__(self, count: int) -> None:
        corner = np.arange(count) % 2
        self.frames = np.zeros((count, IMAGE, IMAGE, 3), np.uint8)
        self.frames[corner == 0, :16, :16] = 255
        self.frames[corner == 1, 16:, 16:] = 255
        self.proprioception = np.zeros((count, 7), np.float32)
        self.classes = np.zeros((count, 1), np.int64)
        self.positions = np.repeat(np.where(corner == 0, -0.1, 0.1), 3).reshape(count, 1, 3).astype(np.float32)

    def ask(self, rng, rows):
        return ["lift the ball"] * len(rows), np.zeros((len(rows), 1), np.int64)


def test_a_policy_learns_where_the_ball_is(tmp_path: Path):
    """With one thing, and with a name that no simulator of ours has."""
    policy, scenes, rng = make_policy(tmp_path), Balls(8), np.random.default_rng(0)
    assert isinstance(policy, Groundable)
    errors: dict[str, list[float]] = {"vision": [], "joint": []}
    pretrain_vision(policy, scenes, 60, 8, 3e-3, rng, lambda *line: errors["vision"].append(line[2][0]), False)
    seen = [parameter.detach().clone() for parameter in policy.vision_parts().parameters()]
    grounding = Grounding(policy, scenes, rng)
    assert grounding.head.out_features == 3
    pretrain_jointly(policy, grounding, 60, 8, 3e-3, lambda *line: errors["joint"].append(line[2][0]))
    for stage, values in errors.items():
        assert values[-1] < 0.3 * values[0], stage
    assert all(torch.equal(a, b) for a, b in zip(seen, policy.vision_parts().parameters(), strict=True))


def test_a_policy_without_such_parts_is_told_apart():
    assert not isinstance(GaussianPolicy(proprioception_dim=1, action_dim=1), Groundable)
