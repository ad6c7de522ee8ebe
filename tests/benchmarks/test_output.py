"""What a record says of the command that made it."""

import sys
from pathlib import Path

import pytest

from benchmarks import output


@pytest.mark.parametrize("program", ["benchmarks/soak.py", str(output.ROOT / "benchmarks" / "soak.py")])
def test_a_benchmark_that_is_run_by_its_file_is_named_by_its_module(program: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(output.ROOT)
    monkeypatch.setattr(sys, "argv", [program, "--minutes", "3"])
    assert output.write_record(None, "soak", {})["command"] == "python -m benchmarks.soak --minutes 3"


def test_a_command_of_treadle_is_named_as_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "treadle"), "bench", "policy"])
    assert output.write_record(None, "policy", {})["command"] == "treadle bench policy"
