"""Samples that go through the network in blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_samples import sample_inputs

from treadle.data.noise import noise_key
from treadle.policies.prismatic import blocks
from treadle.policies.prismatic.blocks import in_blocks
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.sampling import Sampling


@given(st.integers(1, 300), st.integers(1, 3000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_blocks_are_equal_and_within_their_size(count: int, largest: int, dtype: torch.dtype) -> None:
    x = torch.arange(count)
    sizes: list[int] = []

    def work(rows: slice) -> torch.Tensor:
        sizes.append(len(x[rows]))
        return x[rows] * 2

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(blocks, "BLOCK_BYTES", 2**14)
        assert torch.equal(in_blocks(work, count, largest, torch.zeros(0, dtype=dtype)), x * 2)
    most = max(1, 2**14 // (largest * dtype.itemsize))
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // most)


def test_gradients_are_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    x = torch.ones(5, requires_grad=True)
    taken: list[slice] = []

    def work(rows: slice) -> torch.Tensor:
        taken.append(rows)
        return x[rows]

    in_blocks(work, 5, 10, x).sum().backward()
    assert taken == [slice(None)]


def test_a_policy_acts_alike_in_blocks_of_any_size(policy: PrismaticPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = sample_inputs(policy, 5)
    keys = noise_key(np.arange(5))
    whole, features = policy.act(inputs, Sampling(), keys), policy.encode(inputs).features
    # One sample, and two or three.
    for size in (1, 3 * 64 * 64 * 4):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        parts = policy.act(inputs, Sampling(), keys)
        assert torch.equal(parts.choice, whole.choice)
        torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(parts.values, whole.values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(policy.encode(inputs).features, features, atol=1e-5, rtol=1e-5)


@pytest.mark.full
def test_compiled_blocks_act_alike(policy: PrismaticPolicy) -> None:
    inputs = sample_inputs(policy, 5)
    keys = noise_key(np.arange(5))
    plain = policy.act(inputs, Sampling(), keys)
    policy.compile_blocks()
    try:
        fast = policy.act(inputs, Sampling(), keys)
        some = policy.act(inputs.take(slice(0, 3)), Sampling(), keys[:3])
    finally:
        policy.compile_blocks(False)
    for decision in (fast, some):
        rows = len(decision.choice)
        assert torch.equal(decision.choice, plain.choice[:rows])
        torch.testing.assert_close(decision.log_probs, plain.log_probs[:rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(decision.values, plain.values[:rows], atol=1e-5, rtol=1e-5)
