"""What came of a run, in one small file for programs: `summary.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from treadle.files import to_json, write_atomically

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """Success on one evaluation suite."""

    success: float
    """Share of episodes, 0 to 1."""
    episodes: int
    ci95: tuple[float, float]
    """95 % interval of `success`."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A finished run; each field is a key of `summary.json`."""

    base: dict[str, SuiteResult]
    """Before training, by suite: in_distribution, vision, semantic, execution."""
    final: dict[str, SuiteResult]
    """After training, the same suites."""
    seconds: dict[str, float]
    """Wall time per stage."""
    peak_rss_mb: float
    peak_gpu_mb: float
    """Of tensors on graphics cards; 0 without any."""
    env_steps: int
    """Control steps played in training."""
    control_steps_per_second: float
    """Over training, updates included."""
    versions: dict[str, str]
    seed: int


def suite_name(suite: str) -> str:
    """A suite's key in the summary: the simulator's `train` suite is `in_distribution`."""
    return "in_distribution" if suite == "train" else suite


def suite_results(evaluation: Mapping[str, Any]) -> dict[str, SuiteResult]:
    """The suites of an `evaluation/*.json`, under their keys in the summary."""
    return {
        suite_name(suite): SuiteResult(
            float(result["success"]), int(result["episodes"]), (float(result["ci95"][0]), float(result["ci95"][1]))
        )
        for suite, result in evaluation["suites"].items()
    }


def write_summary(run_dir: Path, summary: RunSummary) -> Path:
    """Write `summary.json`, whole or not at all, and return its path. Raises OutputError."""
    path = run_dir / SUMMARY_FILE
    write_atomically(path, to_json(asdict(summary)) + "\n")
    return path
