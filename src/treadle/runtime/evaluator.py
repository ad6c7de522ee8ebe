"""The evaluator: it measures and films the policy of a run, before and after training."""

import time
from pathlib import Path
from typing import Any

from treadle.config.schema import TrainConfig
from treadle.evaluation.episodes import EPISODES_FILE, Episodes, write_episodes
from treadle.evaluation.evaluate import summarize_suite
from treadle.evaluation.manifest import manifest
from treadle.files import to_json, write_atomically
from treadle.reporting.console import RunConsole
from treadle.reporting.folder import read_videos
from treadle.reporting.video import write_video
from treadle.runtime.roles import Players

VIDEO_SIZE = 224
"""Pixels of a filmed frame's side."""


class Evaluator:
    """Lets the players play evaluation scenarios, and writes the results.

    Args:
        config: the run's settings.
        directory: its folder.
        players: they play in the simulators that training uses.
        console: where progress is shown.
    """

    def __init__(self, config: TrainConfig, directory: Path, players: Players, console: RunConsole) -> None:
        self._config = config
        self._directory = directory
        self._players = players
        self._console = console

    def evaluate_once(self, name: str, checkpoint: Path) -> None:
        """Measure and film the policy of a checkpoint, unless that was done before."""
        if not (self._directory / "evaluation" / f"{name}.json").exists():
            self.evaluate(name, checkpoint)

    def evaluate(self, name: str, checkpoint: Path) -> None:
        """Write `evaluation/NAME.json`, its episodes beside it, and the films of NAME."""
        start, config = time.perf_counter(), self._config
        suites: dict[str, Any] = {}
        episodes: Episodes = {}
        for suite in config.evaluation.suites:
            self._console.stage(f"evaluating {name}: {suite}")
            results = self._players.evaluate(suite, self._console.progress)
            suites[suite] = summarize_suite(suite, results, config.evaluation.success)
            episodes[suite] = dict(enumerate(results))
        report: dict[str, Any] = {"suites": suites}
        report["manifest"] = manifest(checkpoint, config.policy, config.simulator, config.evaluation)
        write_episodes(self._directory / "evaluation" / f"{name}.{EPISODES_FILE}", episodes)
        self._film(name)
        report["seconds"] = time.perf_counter() - start
        write_atomically(self._directory / "evaluation" / f"{name}.json", to_json(report))

    def _film(self, name: str) -> None:
        """Film the first in-distribution scenarios, the same before and after training."""
        if not self._config.evaluation.videos:
            return
        self._console.stage(f"filming {name}")
        films = self._players.film(VIDEO_SIZE)
        folder = self._directory / "videos"
        folder.mkdir(exist_ok=True)
        index = folder / "videos.json"
        entries: list[dict[str, Any]] = read_videos(self._directory)
        entries += [{"index": i} for i in range(len(entries), len(films))]
        for i, (result, frames) in enumerate(films):
            write_video(folder / f"{name}-{i}.mp4", frames, self._players.control_hz)
            entries[i] |= {"scenario": result.scenario.id, "instruction": result.scenario.instruction}
            entries[i][name] = {"file": f"{name}-{i}.mp4", "success": result.success_once, "length": result.length}
        write_atomically(index, to_json(entries))
