"""What loading and saving cost, at full size too."""

from pathlib import Path

import pytest
import torch

from benchmarks.checkpoint import make_checkpoint, measure, run
from treadle.errors import ConfigError
from treadle.policies.checkpoint import read_weights


def test_a_tiny_checkpoint_is_measured_and_saved_as_it_was(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "policy", "openvla_oft", "tiny", torch.bfloat16)
    result = measure(tmp_path / "policy", tmp_path / "saved")
    assert result["actions_finite"]
    assert result["stored_mb"] > 0.5
    assert min(result[f"peak_mb_{stage}"] for stage in ("before", "loaded", "acted", "saved")) > 0
    before, after = (read_weights(tmp_path / name) for name in ("policy", "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ConfigError, match="size: '13b'; allowed: tiny, 200m, 7b"):
        run(None, size="13b", kind="openvla", dtype="bfloat16")


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_no_second_copy(tmp_path: Path, dtype: str) -> None:
    result = run(None, size="200m", kind="openvla_oft", dtype=dtype, scratch=tmp_path)
    # At least the weights themselves were seen, or nothing was measured.
    assert 0.9 <= result["ratio"] <= 1.15
    assert result["saved_bit_for_bit"]


@pytest.mark.full
def test_7b_loads_acts_and_saves_within_24_gib(tmp_path: Path) -> None:
    """15 GB on disk, twice."""
    result = run(None, size="7b", kind="openvla_oft", dtype="bfloat16", scratch=tmp_path)
    assert result["stored_mb"] > 14_000
    assert 0.9 <= result["ratio"] <= 1.15
    assert max(result["peak_mb_acted"], result["peak_mb_saved"]) * 1e6 < 24 * 2**30
    assert result["actions_finite"]
    assert result["saved_bit_for_bit"]
