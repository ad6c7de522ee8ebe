"""The benchmarks of lanes run, and write what they promise. Their figures are for a machine that does nothing else."""

import json
from pathlib import Path

import pytest

from treadle.benchmarks import collect, exchange
from treadle.cores import usable_cores


@pytest.mark.skipif(len(usable_cores()) < 2, reason="pins simulator and policy to a core each")
def test_collect(tmp_path: Path):
    sizes, straggling = collect.Pair(4, 4, 2, 1), collect.Pair(2, 4, 2, 1)
    result = collect.run("synthetic", tmp_path / "collect.json", kind="threads", sizes=sizes, straggling=straggling)
    written = json.loads((tmp_path / "collect.json").read_text())
    assert written.items() >= result.items()
    for name in ("lockstep_seconds", "lanes_seconds", "ratio", "bound_ratio", "share_of_bound", "straggler_ratio"):
        assert written[name] > 0
    assert 1 <= written["bound_ratio"] <= 2
    # A smaller and the larger role of 8 lane-decisions: 1 / (1 + less / more / 8).
    assert 1 / (1 + 1 / 8) - 1e-9 <= written["reachable_share"] <= 1


def test_exchange(tmp_path: Path):
    rows = exchange.run(tmp_path / "exchange.json", slots=4, table=(), splits=((2, 2),), seconds=0.0)
    written = json.loads((tmp_path / "exchange.json").read_text())
    assert {"in_process_ms", "worker_ms", "frames_in_process_ms", "frames_worker_ms"} <= written.keys()
    assert len(written["exchanges"]) == len(rows) == 2 * 2 + 2
    assert {(row.lanes, row.workers) for row in rows} == {(1, 1), (2, 2)}
