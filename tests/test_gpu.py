"""What computes on a GPU, on one where there is one and else on the CPU. `make gpu` runs these tests too."""

import copy
from collections.abc import Generator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from miniature import IMAGE, INSTRUCTIONS, learning_config, make_policy, make_rollout
from treadle.data.noise import noise_key
from treadle.policies import load_policy
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.protocol import Decision, Sampling
from treadle.runtime.trainer import Trainer
from treadle.runtime.weights import load_state, trained_state
from treadle.training.algorithm import Training
from treadle.training.optimizer import MasterAdamW
from treadle.training.ranks import ALONE, Ranks
from treadle.training.sharding import ShardedRanks, shard_policy, unsharded, whole

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenVLAOFT:
    """On the CPU, with a value head that tells observations apart."""
    made = make_policy(tmp_path_factory.mktemp("tokenizer"), chunk=2, action_dim=3)
    made.add_value_head(2, hidden=(16,))
    assert made.value_head is not None
    torch.manual_seed(0)
    nn.init.normal_(made.value_head.last.weight, std=0.3)
    return made


def act(policy: OpenVLAOFT) -> Decision:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 1, IMAGE, IMAGE, 3), dtype=np.uint8)
    inputs = policy.prepare(frames, INSTRUCTIONS * 3, rng.uniform(-1, 1, (6, 7)).astype(np.float32))
    return policy.act(policy.encode(inputs), Sampling(), noise_key(0, np.arange(6)))


def update(policy: OpenVLAOFT, device: torch.device, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Parameters after two updates from rollouts of the CPU, whole."""
    rollout = make_rollout(policy, 3, 6, seed=1, encode=False, version=0)
    trained = copy.deepcopy(policy).to(device)
    if isinstance(ranks, ShardedRanks):
        shard_policy(trained, ranks, device)
    config = learning_config(policy={"freeze_vision": False}, optimizer={"gradient_norm": 0.5})
    trainer = Trainer(Training(trained, None, config, device, lambda: policy, ranks), shared=False)
    for version in range(2):
        metrics = trainer.update([replace(rollout, versions=torch.full_like(rollout.versions, version))], version)
        if version == 0:
            # The rollout is of the CPU.
            assert metrics["update/log_prob_gap"] < 1e-3
    return {name: whole(parameter, ranks).cpu() for name, parameter in trained.named_parameters()}


def assert_same_change(policy: OpenVLAOFT, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """AdamW's first steps are signs of gradients, and the sign of one that is near 0 is rounding's to say: so changes
    are compared as a whole.
    """
    before = dict(policy.named_parameters())
    assert found.keys() == wanted.keys() == before.keys()
    one, other = (torch.cat([(x[name] - before[name]).flatten() for name in before]) for x in (found, wanted))
    assert other.norm() > 0.01
    assert (one - other).norm() < 0.05 * other.norm()


def test_a_policy_decides_as_on_the_cpu(policy: OpenVLAOFT):
    """Noise belongs to keys, so the choices are the same, unless rounding decides."""
    wanted, found = act(policy), act(copy.deepcopy(policy).to(DEVICE))
    same = found.choice.cpu() == wanted.choice
    assert same.float().mean() > 0.95
    rows = same.all(-1)
    assert rows.any()
    assert torch.allclose(found.log_probs.cpu()[rows], wanted.log_probs[rows], atol=1e-3)
    assert found.values is not None
    assert wanted.values is not None
    assert torch.allclose(found.values.cpu(), wanted.values, atol=1e-3)
    assert torch.allclose(found.actions.cpu()[rows], wanted.actions[rows], atol=1e-6)


def test_a_checkpoint_loads_and_saves(policy: OpenVLAOFT, tmp_path: Path):
    policy.save(tmp_path / "saved")
    loaded = load_policy(tmp_path / "saved", device=str(DEVICE))
    assert loaded.device == DEVICE
    loaded.save(tmp_path / "again")
    again = load_policy(tmp_path / "again", device="cpu").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in policy.state_dict().items())


def test_updates_are_those_of_the_cpu(policy: OpenVLAOFT):
    assert_same_change(policy, update(policy, DEVICE), update(policy, CPU))


def test_weights_go_through_the_cpu(policy: OpenVLAOFT):
    """What is published on the CPU is received on the device."""
    source, target = (copy.deepcopy(policy).to(DEVICE) for _ in range(2))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5)
    state = trained_state(source)
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    load_state(target, state)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimizer_state_leaves_the_device_and_comes_back(dtype: torch.dtype):
    size = 2**20
    plain, moved = (nn.Parameter(torch.linspace(-1, 1, size, device=DEVICE, dtype=dtype)) for _ in range(2))
    optimizers = [MasterAdamW([parameter], lr=1e-3, fused=True) for parameter in (plain, moved)]
    for _ in range(3):
        for parameter, optimizer in zip((plain, moved), optimizers, strict=True):
            parameter.grad = torch.sin(torch.arange(size, device=DEVICE)).to(dtype)
            optimizer.step()
            optimizer.zero_grad()
        before = torch.cuda.memory_allocated(DEVICE) if CUDA else 0
        optimizers[1].offload()
        if CUDA:
            # Two moments, and below float32 a master: 4 bytes each.
            moved_bytes = size * (8 if dtype == torch.float32 else 12)
            assert before - torch.cuda.memory_allocated(DEVICE) == pytest.approx(moved_bytes, rel=0.1)
    assert torch.equal(plain, moved)


@pytest.fixture
def one_rank(tmp_path: Path) -> Generator[ShardedRanks, None, None]:
    """A group of one process: NCCL on a GPU, else gloo."""
    if CUDA:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if CUDA else "gloo",
        store=dist.FileStore(str(tmp_path / "store"), 1),
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=60),
    )
    try:
        yield ShardedRanks(60.0)
    finally:
        dist.destroy_process_group()


def test_a_shard_of_one_makes_the_same_updates(policy: OpenVLAOFT, one_rank: ShardedRanks):
    assert_same_change(policy, update(policy, DEVICE, one_rank), update(policy, DEVICE))


def test_a_shard_of_one_acts_and_publishes(policy: OpenVLAOFT, one_rank: ShardedRanks):
    plain = act(copy.deepcopy(policy).to(DEVICE))
    sharded = copy.deepcopy(policy)
    shard_policy(sharded, one_rank, DEVICE)
    with unsharded(sharded):
        found = act(sharded)
    assert torch.equal(found.choice, plain.choice)
    state = trained_state(sharded, one_rank)
    assert all(torch.equal(state[name], parameter) for name, parameter in policy.named_parameters())
