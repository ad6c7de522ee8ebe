"""Batches of named tensors."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from treadle.data.batch import TensorBatch


@dataclass(slots=True)
class Sight(TensorBatch):
    ids: Tensor
    pixels: Tensor | None = None
    state: Tensor | None = None


def make(count: int, start: int = 0) -> Sight:
    ids = torch.arange(start, start + count)
    return Sight(ids, state=ids[:, None] * torch.tensor([1.0, 10.0]))


def test_tensors_that_are_there() -> None:
    assert list(make(3).tensors()) == ["ids", "state"]
    assert len(make(3)) == 3


@given(st.lists(st.integers(0, 4), max_size=8))
def test_rows_keep_together(rows: list[int]) -> None:
    taken = make(5).take(torch.tensor(rows, dtype=torch.long))
    assert type(taken) is Sight
    assert taken.pixels is None
    assert taken.ids.tolist() == rows
    assert taken.state is not None
    assert taken.state.tolist() == [[row, 10 * row] for row in rows]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_joining_undoes_cutting(lengths: list[int]) -> None:
    whole, start, parts = make(sum(lengths)), 0, []
    for length in lengths:
        parts.append(whole.take(slice(start, start + length)))
        start += length
    joined = TensorBatch.cat(parts)
    assert type(joined) is Sight
    assert joined.tensors().keys() == whole.tensors().keys()
    assert all(torch.equal(joined.tensors()[name], tensor) for name, tensor in whole.tensors().items())


def test_parts_must_have_the_same_tensors() -> None:
    other = Sight(torch.zeros(2), pixels=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"different tensors: \['ids', 'state'\] and \['ids', 'pixels'\]"):
        Sight.cat([make(2), other])


def test_another_device() -> None:
    moved = make(2).to("meta")
    assert type(moved) is Sight
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
