"""The folder of a run that never ran: deterministic curves, results and tiny videos."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from treadle.config.schema import TrainConfig
from treadle.reporting.machine import versions, write_machine
from treadle.reporting.metrics import MetricsWriter
from treadle.reporting.summary import RunSummary, suite_results, write_summary
from treadle.reporting.video import Frames, write_video

SETTINGS = {
    "train": ["train"],
    "vision": ["vision/texture", "vision/noise", "vision/lighting", "vision/camera_shift"],
    "semantic": ["semantic/object", "semantic/plate", "semantic/paraphrase", "semantic/distractor_object"],
    "execution": ["execution/position", "execution/start_pose", "execution/moved_object"],
}
BASE = {"train": 0.484, "vision": 0.352, "semantic": 0.301, "execution": 0.207}
FINAL = {"train": 0.945, "vision": 0.781, "semantic": 0.602, "execution": 0.215}


def metrics_row(iteration: int) -> dict[str, float]:
    """The numbers of one iteration, counted from 1."""
    noise = float(np.random.default_rng(iteration).normal())
    progress = 1 - math.exp(-iteration / 20)
    return {
        "iteration": iteration,
        "seconds": 3.1 * iteration,
        "rollout/success": min(1.0, 0.45 + 0.5 * progress + 0.025 * noise),
        "rollout/return": 0.8 + 1.4 * progress + 0.06 * noise,
        "rollout/length": 48 - 19 * progress + noise,
        "rollout/episodes": 410 + iteration,
        "rollout/control_steps": 10240,
        "time/simulate": 1.2 + 0.02 * noise,
        "time/generate": 0.7,
        "time/update": 0.9 + 0.05 * noise,
        "time/critic": 0.2,
        "time/iteration": 3.1 + 0.07 * noise,
        "speed/control_steps_per_second": 3300 + 40 * noise,
        "update/approximate_kl": 0.012 + 0.003 * abs(noise),
        "update/clip_share": 0.08 + 0.01 * noise,
        "update/log_prob_gap": 2e-6 + 1e-7 * noise,
        "update/entropy": 1.9 - 0.8 * progress,
        "update/gradient_norm": math.nan if iteration == 1 else 0.8 + 0.2 * abs(noise),
        "update/policy_loss": -0.01 + 0.002 * noise,
        "update/ratio_max": 3.0 + abs(noise),
        "update/learning_rate": 1e-4,
        "critic/loss": 0.3 * (1 - progress) + 0.05,
        "critic/explained_variance": 0.85 * progress + 0.02 * noise,
        "extra/of_a_plugin": 7.0 + noise,
    }


def evaluation(success: dict[str, float], episodes: int = 256) -> dict[str, Any]:
    """The content of an `evaluation/*.json`."""
    suites: dict[str, Any] = {}
    for suite, settings in SETTINGS.items():
        suites[suite] = _result(success[suite], episodes)
        shares = [success[suite] + 0.03 * (i - (len(settings) - 1) / 2) for i in range(len(settings))]
        suites[suite]["settings"] = {
            setting: _result(share, episodes // len(settings)) for setting, share in zip(settings, shares, strict=True)
        }
    return {"suites": suites, "manifest": {"simulator": "tabletop", "split": "evaluation"}}


def moving_square(length: int, height: int = 96, width: int = 96) -> Frames:
    """Frames `[length, height, width, 3]` of a square that crosses a table."""
    frames = np.full((length, height, width, 3), (196, 164, 124), np.uint8)
    frames[:, height // 2 :, :, :] = (176, 140, 100)
    for step, frame in enumerate(frames):
        left = round(step / length * (width - 16))
        frame[height // 2 - 8 : height // 2 + 8, left : left + 16] = (200, 60, 50)
    return frames


def make_run(
    run_dir: Path, iterations: int = 100, played: int | None = None, instruction: str = "put the red cube on the plate"
) -> Path:
    """Write the folder of a run; `played` below `iterations` leaves it unfinished."""
    played = iterations if played is None else played
    finished = played == iterations
    run_dir.mkdir(parents=True)
    config = TrainConfig(name=run_dir.name, iterations=iterations, seed=3)
    (run_dir / "config.json").write_text(config.model_dump_json(indent=2))
    write_machine(run_dir)
    with MetricsWriter(run_dir) as writer:
        for iteration in range(1, played + 1):
            writer.write(metrics_row(iteration))
    if not finished:
        return run_dir
    (run_dir / "evaluation").mkdir()
    for name, success in (("base", BASE), ("final", FINAL)):
        (run_dir / "evaluation" / f"{name}.json").write_text(json.dumps(evaluation(success)))
    _film(run_dir, instruction)
    summary = RunSummary(
        base=suite_results(evaluation(BASE)),
        final=suite_results(evaluation(FINAL)),
        seconds={"evaluate_base": 21.4, "train": 3.1 * played, "evaluate_final": 17.9, "videos": 4.2},
        peak_rss_mb=2345.6,
        peak_gpu_mb=0.0,
        env_steps=10240 * played,
        control_steps_per_second=3303.2,
        versions=versions(),
        seed=3,
    )
    write_summary(run_dir, summary)
    return run_dir


def _film(run_dir: Path, instruction: str) -> None:
    entries: list[dict[str, Any]] = []
    for index in range(2):
        entry: dict[str, Any] = {
            "index": index,
            "scenario": f"tabletop/train/evaluation/{index:06d}",
            "instruction": instruction,
        }
        for name, length, success in (("base", 24, index == 1), ("final", 16, True)):
            file = f"{name}-{index}.mp4"
            write_video(run_dir / "videos" / file, moving_square(length), fps=10)
            entry[name] = {"file": file, "success": success, "length": length}
        entries.append(entry)
    (run_dir / "videos" / "videos.json").write_text(json.dumps(entries))


def _result(success: float, episodes: int) -> dict[str, Any]:
    # Wilson's interval.
    z, n = 1.96, episodes
    center = (success + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(success * (1 - success) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "success": success,
        "episodes": episodes,
        "ci95": [center - half, center + half],
        "success_at_end": success * 0.98,
        "mean_length": 31.5,
    }
