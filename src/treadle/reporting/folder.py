"""The folder of a run, read for its report; a run that is not finished lacks some of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from treadle.config.section import Natural, NonNegative, Share
from treadle.errors import OutputError, did_you_mean_folder
from treadle.reading import read_json
from treadle.reporting.log import read_warnings
from treadle.reporting.machine import MACHINE_FILE
from treadle.reporting.metrics import METRICS_FILE, read_metrics
from treadle.reporting.summary import SUMMARY_FILE
from treadle.reporting.timeline import ROLES, TRACE_FILE
from treadle.tables import LooseTable, read_table

Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]


class _Setting(LooseTable):
    """Success on a suite, or on a setting of it."""

    success: Share
    episodes: Natural
    ci95: Interval


class _Suite(_Setting):
    settings: dict[str, _Setting] = {}


class _Evaluation(LooseTable):
    suites: dict[str, _Suite]
    complete: bool = True
    held_out: bool = True
    seconds: NonNegative = 0.0


class _Config(LooseTable):
    name: str = ""
    iterations: Natural = 0
    seed: int | None = None


class _Film(LooseTable):
    file: str
    success: bool
    length: Natural


class _Scene(LooseTable):
    scenario: str
    instruction: str
    suite: str = "train"
    place: Natural = 0
    pair: str | None = None
    base: _Film | None = None
    final: _Film | None = None


class _Scenes(LooseTable):
    videos: list[_Scene]


class _Summary(LooseTable):
    base: dict[str, _Setting] = {}
    final: dict[str, _Setting] = {}
    seconds: dict[str, NonNegative] = {}
    peak_rss_mb: float | None = None
    peak_gpu_mb: float | None = None
    env_steps: Natural | None = None
    control_steps_per_second: float | None = None
    versions: dict[str, str] = {}
    seed: int | None = None


class _Machine(LooseTable):
    versions: dict[str, str] = {}


class _Arguments(LooseTable):
    iteration: Natural = 0
    lanes: list[Natural] = []


class _Event(LooseTable):
    ph: str
    name: str = ""
    ts: Annotated[float, Field(ge=0, le=1e18)] = 0.0
    dur: Annotated[float, Field(ge=0, le=1e18)] = 0.0
    pid: Annotated[int, Field(ge=0, lt=len(ROLES))] = 0
    tid: Natural = 0
    args: _Arguments = _Arguments()


class _Prediction(LooseTable):
    seconds: Annotated[float, Field(gt=0)]
    bound: str
    source: str


class _Trial(LooseTable):
    success: Share
    episodes: Natural = 0
    temperature: NonNegative = 0.0


class _Preflight(LooseTable):
    still: _Trial
    trials: list[_Trial]
    temperature: NonNegative


class _Trace(LooseTable):
    traceEvents: list[_Event]  # noqa: N815 - Chrome's word


PREDICTION_FILE = "plan.json"
"""What a plan predicted of a run, where it was made with a profile."""
PREFLIGHT_FILE = "preflight.json"
"""What a run tried before its first update."""


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
    prediction: dict[str, Any] | None = None
    """`plan.json`"""
    preflight: dict[str, Any] | None = None
    """`preflight.json`"""
    warnings: list[str] = field(default_factory=list[str])
    """Lines of `run.log`."""

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
        raise OutputError(
            f"{run_dir}: no such folder{did_you_mean_folder(run_dir)}; give the folder of a run, as in runs/quickstart"
        )
    config = _read(run_dir / "config.json", _Config)
    has_metrics = (run_dir / METRICS_FILE).exists()
    if not has_metrics and "simulator" not in (config or {}):
        raise OutputError(
            f"{run_dir}: neither {METRICS_FILE} nor a run's config.json is here, so this is not the folder of a run; "
            "`treadle train` makes one below its output folder"
        )
    return RunFolder(
        path=run_dir,
        config=config or {},
        metrics=read_metrics(run_dir) if has_metrics else [],
        base=read_evaluation(run_dir, "base"),
        final=read_evaluation(run_dir, "final"),
        videos=read_videos(run_dir),
        summary=_read(run_dir / SUMMARY_FILE, _Summary),
        machine=_read(run_dir / MACHINE_FILE, _Machine),
        trace=_read(run_dir / TRACE_FILE, _Trace),
        prediction=_read(run_dir / PREDICTION_FILE, _Prediction),
        preflight=_read(run_dir / PREFLIGHT_FILE, _Preflight),
        warnings=read_warnings(run_dir),
    )


def read_evaluation(run_dir: Path, name: str) -> dict[str, Any] | None:
    """An evaluation of a run, None where there is none. Raises OutputError."""
    return read_report(run_dir / "evaluation" / f"{name}.json")


def read_report(path: Path) -> dict[str, Any] | None:
    """What an evaluation has written, None where there is no such file. Raises OutputError."""
    return _read(path, _Evaluation)


def read_videos(run_dir: Path) -> list[dict[str, Any]]:
    """What the films of a run show; empty where there is none. Raises OutputError."""
    path = run_dir / "videos" / "videos.json"
    if not path.exists():
        return []
    found = read_json(path, OutputError)
    read_table(_Scenes, {"videos": found}, path, error=OutputError)
    return found


def _read(path: Path, table: type[LooseTable]) -> dict[str, Any] | None:
    """The object of a file, which has what the report reads of it; None where there is no such file."""
    if not path.exists():
        return None
    found = read_json(path, OutputError)
    read_table(table, found, path, error=OutputError)
    return found
