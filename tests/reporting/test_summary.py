import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import BASE, FINAL, evaluation

from treadle.errors import OutputError
from treadle.reporting.machine import describe_machine, peak_rss_mb, versions
from treadle.reporting.summary import RunSummary, SuiteResult, suite_results, write_summary


def _summary() -> RunSummary:
    return RunSummary(
        suite_results(evaluation(BASE)),
        suite_results(evaluation(FINAL)),
        {"train": 1.5},
        800.0,
        0.0,
        1000,
        50.0,
        versions(),
        7,
    )


def test_the_file_has_the_published_keys(tmp_path: Path) -> None:
    stored = json.loads(write_summary(tmp_path, _summary()).read_text())
    wanted = "base final seconds peak_rss_mb peak_gpu_mb env_steps control_steps_per_second versions seed"
    assert set(stored) == set(wanted.split())
    for which, success in (("base", BASE), ("final", FINAL)):
        assert list(stored[which]) == ["in_distribution", "vision", "semantic", "execution"]
        for entry in stored[which].values():
            assert set(entry) == {"success", "episodes", "ci95"}
        assert stored[which]["in_distribution"]["success"] == success["train"]
        low, high = stored[which]["in_distribution"]["ci95"]
        assert low < success["train"] < high


def test_suites_take_their_published_names() -> None:
    result = {"success": 0.25, "episodes": 8, "ci95": [0.1, 0.5], "mean_length": 3}
    assert suite_results({"suites": {"train": result}}) == {"in_distribution": SuiteResult(0.25, 8, (0.1, 0.5))}


def test_a_failure_leaves_the_old_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_summary(tmp_path, _summary())
    before = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match=r"summary\.json"):
        write_summary(tmp_path, _summary())
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["memory_gb"] > 0
    assert machine["cpu"]
    assert {"python", "numpy", "torch"} <= set(machine["versions"])


def test_memory_is_that_of_this_process_and_its_workers() -> None:
    held = np.ones(2**25)
    before = peak_rss_mb()
    subprocess.run(["true"], check=True)
    assert held.nbytes / 2**20 < before < 1e6
    assert peak_rss_mb() < 1.1 * before, "a child that ran a command is no second process of this size"
    program = "x = b'x' * 2**28; print(len(x), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert peak_rss_mb([worker.pid]) - peak_rss_mb() > 250 or sys.platform != "linux"
        worker.communicate(b"\n")
    assert peak_rss_mb([worker.pid]) == peak_rss_mb(), "it has ended"
