"""AdamW with masters."""

import copy

import pytest
import torch
from torch import nn

from treadle.errors import CheckpointError
from treadle.training.optimizer import MasterAdamW


def test_steps_too_small_for_bfloat16_add_up() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([parameter], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    # 100 steps of 1e-4 each: 0.99, to bfloat16 0.98828125 or 0.9921875. Without a master each is rounded away.
    assert abs(parameter.float()[0].item() - 0.99) < 0.004
    assert parameter.grad is None
    plain = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    rounded = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0)
    for _ in range(100):
        plain.grad = torch.ones_like(plain)
        rounded.step()
    assert torch.equal(plain, torch.ones_like(plain))


def train(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()


def test_a_gradient_goes_to_its_master() -> None:
    """Both together would take two more bytes of each parameter."""
    parameter, seen = nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), list[bool]()
    optimizer = MasterAdamW([parameter])
    optimizer.register_step_pre_hook(lambda *_: seen.append(parameter.grad is None))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert seen == [True]


def test_float32_parameters_are_adamws() -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    train([ours], MasterAdamW([{"params": [ours], "lr": 1e-2}], weight_decay=0.1, fused=True), range(5))
    train([theirs], torch.optim.AdamW([{"params": [theirs], "lr": 1e-2}], weight_decay=0.1, fused=True), range(5))
    assert torch.equal(ours, theirs)


def test_resuming_is_exact() -> None:
    def fresh() -> list[nn.Parameter]:
        return [nn.Parameter(torch.linspace(-1, 1, 5, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]

    through = fresh()
    train(through, MasterAdamW(through, lr=1e-3), range(8))
    first = fresh()
    optimizer = MasterAdamW(first, lr=1e-3)
    train(first, optimizer, range(5))
    state = copy.deepcopy(optimizer.state_dict())
    second = [nn.Parameter(p.detach().clone()) for p in first]
    resumed = MasterAdamW(second, lr=1e-3)
    resumed.load_state_dict(state)
    train(second, resumed, range(5, 8))
    assert all(torch.equal(a, b) for a, b in zip(through, second, strict=True))


def test_offloading_changes_nothing() -> None:
    """Here nothing moves, because all is on the CPU; the next step ends it, and a state may be saved meanwhile."""
    plain, moved = ([nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.bfloat16))] for _ in range(2))
    train(plain, MasterAdamW(plain, lr=1e-3), range(4))
    optimizer = MasterAdamW(moved, lr=1e-3)
    for seed in range(4):
        optimizer.offload()
        assert optimizer.offloaded
        state = copy.deepcopy(optimizer.state_dict())
        train(moved, optimizer, range(seed, seed + 1))
        assert not optimizer.offloaded
    assert torch.equal(plain[0], moved[0])
    optimizer.offload()
    optimizer.load_state_dict(state)
    assert not optimizer.offloaded


def test_a_state_of_other_parameters_is_refused() -> None:
    one, other = ([nn.Parameter(torch.ones(size))] for size in (3, 4))
    optimizer = MasterAdamW(one)
    train(one, optimizer, range(1))
    with pytest.raises(CheckpointError, match=r"the state of a parameter \[4\] has shape \[3\]: it is of another"):
        MasterAdamW(other).load_state_dict(optimizer.state_dict())
