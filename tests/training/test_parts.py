"""Rows of tensors in files of several ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from treadle.errors import CheckpointError
from treadle.training.parts import join_state, part_path, read_parts, split_state, write_part
from treadle.training.shards import Shard, as_state, from_state

WHOLE = torch.arange(10.0).reshape(5, 2)
BOUNDS = [(0, 2), (2, 4), (4, 5)]


def write(folder: Path, bounds: list[tuple[int, int]] = BOUNDS) -> None:
    """The rows of a tensor, and one of a single row, which the first rank has."""
    for rank, (start, stop) in enumerate(bounds):
        shards = {
            "rows": Shard(WHOLE[start:stop], start, (5, 2)),
            "one": Shard(torch.ones(1 if rank == 0 else 0, 3), min(rank, 1), (1, 3)),
        }
        write_part(part_path(folder, rank, len(bounds)), shards)


def test_any_rows_are_read_from_the_files_that_have_them(tmp_path: Path):
    write(tmp_path)
    stored = read_parts(tmp_path, 3)
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(stored["rows"].take(start, stop), WHOLE[start:stop])
    assert stored["one"].shape == (1, 3)
    assert torch.equal(stored["one"].take(0, 1), torch.ones(1, 3))
    assert stored["one"].take(1, 1).shape == (0, 3)
    assert torch.equal(from_state(stored["rows"], nn.Parameter(torch.zeros(5, 2))), WHOLE)


def test_a_state_is_taken_apart_and_put_together(tmp_path: Path):
    tensor = torch.ones(2)
    state: dict[str, Any] = {
        "optimizer": {"state": {0: {"moment": Shard(WHOLE, 0, (5, 2)), "step": tensor}}, "groups": [(1, None)]},
        "masters": [Shard(WHOLE + 1, 0, (5, 2))],
    }
    plain, shards = split_state(state)
    assert list(shards) == ["optimizer.state.0.moment", "masters.0"]
    assert plain["optimizer"]["groups"] == [(1, None)]
    assert plain["optimizer"]["state"][0]["step"] is tensor
    write_part(part_path(tmp_path, 0, 1), shards)
    joined = join_state(plain, read_parts(tmp_path, 1))
    assert torch.equal(joined["optimizer"]["state"][0]["moment"].take(0, 5), WHOLE)
    assert torch.equal(joined["masters"][0].take(1, 2), WHOLE[1:2] + 1)
    with pytest.raises(CheckpointError, match=r"masters.0 is in no file of shards; remove the checkpoint"):
        join_state(plain, {"optimizer.state.0.moment": joined["masters"][0]})


def test_what_is_missing_is_named(tmp_path: Path):
    write(tmp_path, BOUNDS[:2])
    with pytest.raises(
        CheckpointError, match=r"cannot be read \(rows ends with row 4 of \[5, 2\]\); remove .* to resume"
    ):
        read_parts(tmp_path, 2)
    write(tmp_path, [(0, 2), (3, 5)])
    with pytest.raises(
        CheckpointError, match=r"00002-of-00002.safetensors: .*rows begins with row 3 of \[5, 2\], not 2"
    ):
        read_parts(tmp_path, 2)
    write(tmp_path)
    part_path(tmp_path, 1, 3).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003.safetensors: not readable as .*; remove"):
        read_parts(tmp_path, 3)
    part_path(tmp_path, 1, 3).write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"00002-of-00003.safetensors: not readable as .*; remove"):
        read_parts(tmp_path, 3)


def test_a_whole_tensor_is_its_own_state():
    parameter = nn.Parameter(torch.zeros(5, 2))
    assert as_state(WHOLE, parameter) is WHOLE
    assert from_state(WHOLE, parameter) is WHOLE
    with pytest.raises(CheckpointError, match=r"parameter \[5, 2\] has shape \[2, 5\]"):
        from_state(WHOLE.T, parameter)


def test_rows_of_another_rank_are_refused():
    shard = Shard(WHOLE[2:4], 2, (5, 2))
    assert torch.equal(shard.take(2, 4), WHOLE[2:4])
    assert torch.equal(shard.take(3, 4), WHOLE[3:4])
    assert shard.take(5, 5).shape == (0, 2)
    with pytest.raises(CheckpointError, match=r"rows 1 to 3 of a tensor .*: this rank's state has 2 to 4"):
        shard.take(1, 3)
