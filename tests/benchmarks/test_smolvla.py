"""The benchmark of a whole SmolVLA, at tiny sizes: a record of each stage, and an update that fits what was played."""

import json
from pathlib import Path

import pytest

from benchmarks import smolvla
from treadle.policies.smolvla.sizes import Sizes

SIZES = Sizes(
    image=32, shuffle=2, vision_width=12, vision_layers=1, vision_heads=2, vision_mlp=24, width=32, layers=2,
    heads=4, key_heads=2, head=8, mlp=64, vocabulary=64, expert_width=24, chunk=4, state=6, action=8,
)  # fmt: skip


@pytest.mark.parametrize("rank", [0, 2])
def test_it_is_written_loaded_acts_and_is_updated(tmp_path: Path, rank: int):
    record = smolvla.run(tmp_path / "smolvla.json", 2, 3, 2, rank, 1, sizes=SIZES)
    assert record["seconds"].keys() == {"write", "load", "read_one", "act_one", "play", "update"}
    assert record["seconds"].keys() == record["peak_memory_mb"].keys()
    assert record["types"] == ["bfloat16", "float32"]
    assert 0 < record["trained_parameters"] < record["parameters"]
    assert record["update"]["steps"] == 1
    assert record["update"]["gradient_norm"] > 0
    assert json.loads((tmp_path / "smolvla.json").read_text())["policy"]["steps"] == 2
