"""Faults at random moments of real training: what is drawn, and some of what `make faults` injects."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import faults


def test_a_seed_draws_the_same_and_seeds_draw_everything():
    drawn = [faults.draw(seed) for seed in range(300)]
    assert drawn == [faults.draw(seed) for seed in range(300)]
    assert {injection.kind for injection in drawn} == {*faults.KINDS, *faults.ON_RAY}
    assert {injection.variant for injection in drawn} == set(faults.VARIANTS)
    assert {injection.iteration for injection in drawn} == {0, 1, 2, 3}


@pytest.mark.integration
@pytest.mark.parametrize("count", [5, pytest.param(20, marks=pytest.mark.full)])
def test_some_of_the_faults_end_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int):
    path = tmp_path / "faults.json"
    settings = ["--count", str(count), "--seed", "1000", "--jobs", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["faults", *settings])
    with pytest.raises(SystemExit):
        faults.main()
    found = json.loads(path.read_text())
    assert [outcome for outcome in found["outcomes"] if not outcome["as_documented"]] == []
    assert found["shared_memory_left"] == []
