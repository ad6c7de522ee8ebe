"""The folder of a run, read for its report; a run that is not finished lacks some of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treadle.errors import OutputError
from treadle.files import read_json
from treadle.reporting.machine import MACHINE_FILE
from treadle.reporting.metrics import METRICS_FILE, read_metrics
from treadle.reporting.summary import SUMMARY_FILE
from treadle.reporting.timeline import TRACE_FILE


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What a run has written so far; what is not there yet is None or empty."""

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    base: dict[str, Any] | None
    """`evaluation/base.json`"""
    final: dict[str, Any] | None
    """`evaluation/final.json`"""
    videos: list[dict[str, Any]]
    summary: dict[str, Any] | None
    machine: dict[str, Any] | None
    trace: dict[str, Any] | None
    """`trace.json`"""

    @property
    def name(self) -> str:
        """The run's name, which is its folder's where the configuration has none."""
        return str(self.config.get("name") or self.path.name)

    @property
    def iterations(self) -> int:
        """Iterations played so far."""
        return int(self.metrics[-1]["iteration"]) if self.metrics else 0

    def series(self, key: str) -> list[float]:
        """One metric over all iterations, NaN where a row lacks it."""
        return [row.get(key, float("nan")) for row in self.metrics]

    def metric_keys(self) -> list[str]:
        """Every metric that some row has, in order of first appearance."""
        return list(dict.fromkeys(key for row in self.metrics for key in row))


def read_run(run_dir: Path) -> RunFolder:
    """Read the folder of a run. Raises OutputError where it is none, or a file of it cannot be read."""
    if not run_dir.is_dir():
        raise OutputError(f"{run_dir}: no such folder; give the folder of a run, as in runs/quickstart")
    config = read_json(run_dir / "config.json")
    has_metrics = (run_dir / METRICS_FILE).exists()
    if config is None and not has_metrics:
        raise OutputError(
            f"{run_dir}: neither config.json nor {METRICS_FILE} is here, so this is not the folder of a run; "
            "`treadle train` makes one below its output folder"
        )
    return RunFolder(
        path=run_dir,
        config=config or {},
        metrics=read_metrics(run_dir) if has_metrics else [],
        base=read_json(run_dir / "evaluation" / "base.json"),
        final=read_json(run_dir / "evaluation" / "final.json"),
        videos=read_json(run_dir / "videos" / "videos.json") or [],
        summary=read_json(run_dir / SUMMARY_FILE),
        machine=read_json(run_dir / MACHINE_FILE),
        trace=read_json(run_dir / TRACE_FILE),
    )
