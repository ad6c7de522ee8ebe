"""The evaluator: it measures and films the policy of a run, before and after training."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treadle.config.schema import TrainConfig
from treadle.data.step import EpisodeResult
from treadle.evaluation.episodes import EPISODES_FILE, Episodes, write_episodes
from treadle.evaluation.evaluate import summarize_suite
from treadle.evaluation.films import choose_scenes
from treadle.evaluation.manifest import manifest
from treadle.evaluation.statistics import succeeded
from treadle.files import to_json, write_atomically
from treadle.reporting.console import RunConsole
from treadle.reporting.folder import read_evaluation, read_videos
from treadle.reporting.video import read_video, side_by_side, write_video
from treadle.runtime.roles import Players
from treadle.training.state import checkpoint_name

VIDEO_SIZE = 224
"""Pixels of a filmed frame's side."""


_Measured = tuple[dict[str, Any], dict[str, list[EpisodeResult]]]
"""Of every suite: summary and episodes."""


class Evaluator:
    """Lets the players play evaluation scenarios, and writes the results.

    Args:
        config: the run's settings.
        directory: its folder.
        players: they play in the simulators that training uses.
        console: where progress is shown.
        facts: what manifests say besides.
    """

    def __init__(
        self,
        config: TrainConfig,
        directory: Path,
        players: Players,
        console: RunConsole,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._directory = directory
        self._players = players
        self._console = console
        self._facts = dict(facts or {})
        self._latest: tuple[int, _Measured] | None = None
        """The iteration that was evaluated last, by this process, and what came of it."""

    def evaluate_once(self, name: str, checkpoint: Path) -> None:
        """Measure and film the policy of a checkpoint, unless that was done before."""
        if not (self._directory / "evaluation" / f"{name}.json").exists():
            self.evaluate(name, checkpoint)

    def evaluate(self, name: str, checkpoint: Path, iteration: int | None = None) -> None:
        """Write `evaluation/NAME.json`, its episodes beside it, and the films of NAME. The policy of an iteration that
        was just evaluated is not measured again.
        """
        start = time.perf_counter()
        known = self._latest[1] if self._latest is not None and self._latest[0] == iteration else None
        suites, episodes = self._measure(name, known)
        report: dict[str, Any] = {"suites": suites, "held_out": self._players.spec.held_out}
        made = manifest(checkpoint, self._config.policy, self._config.simulator, self._config.evaluation)
        report["manifest"] = made | {"policy_facts": self._players.policy_facts} | self._facts
        self._film(name, episodes)
        self._write(name, report, start)

    def evaluate_iteration(self, iteration: int) -> dict[str, float]:
        """Write the evaluation of a policy that is being trained, without films; returns success by suite."""
        start, name = time.perf_counter(), checkpoint_name(iteration)
        measured = suites, _ = self._measure(name)
        self._latest = iteration, measured
        self._write(name, {"suites": suites}, start)
        return {suite: found["success"] for suite, found in suites.items()}

    def is_best(self, iteration: int) -> bool:
        """Whether no evaluation of an earlier iteration found as much success, in the first of the suites."""
        suite, own = self._config.evaluation.suites[0], checkpoint_name(iteration)
        names = sorted(path.stem for path in (self._directory / "evaluation").glob("iteration-*.json"))
        success: dict[str, float] = {}
        for name in names:
            if name <= own and (found := read_evaluation(self._directory, name)) is not None:
                success[name] = found["suites"][suite]["success"]
        return max(success, key=lambda name: success[name]) == own

    def _measure(self, name: str, known: _Measured | None = None) -> _Measured:
        """Play every suite, unless it is known what comes of it, and write the episodes; returns both."""
        config = self._config
        suites, episodes = known or ({}, {})
        for suite in () if known else config.evaluation.suites:
            self._console.stage(f"evaluating {name}: {suite}")
            episodes[suite] = self._players.evaluate(suite, self._console.progress)
            suites[suite] = summarize_suite(suite, episodes[suite], config.evaluation.success)
        numbered: Episodes = {suite: dict(enumerate(results)) for suite, results in episodes.items()}
        write_episodes(self._directory / "evaluation" / f"{name}.{EPISODES_FILE}", numbered)
        return suites, episodes

    def _write(self, name: str, report: dict[str, Any], start: float) -> None:
        report["seconds"] = time.perf_counter() - start
        write_atomically(self._directory / "evaluation" / f"{name}.json", to_json(report))

    def _film(self, name: str, episodes: Mapping[str, Sequence[EpisodeResult]]) -> None:
        """Film scenarios that the base's results choose, the same before and after training; after it also side by
        side.
        """
        evaluation, folder = self._config.evaluation, self._directory / "videos"
        if not evaluation.videos:
            return
        self._console.stage(f"filming {name}")
        folder.mkdir(exist_ok=True)
        entries: list[dict[str, Any]] = read_videos(self._directory)
        chosen = [(entry["suite"], entry["place"]) for entry in entries]
        chosen = chosen or choose_scenes(episodes, evaluation.success, evaluation.videos)
        entries += [{"suite": suite, "place": place} for suite, place in chosen[len(entries) :]]
        fps = self._players.spec.control_hz
        for i, (result, frames) in enumerate(self._players.film(chosen, VIDEO_SIZE)):
            entry, success = entries[i], succeeded(result, evaluation.success)
            entry |= {"scenario": result.scenario.id, "instruction": result.scenario.instruction}
            entry[name] = {"file": f"{name}-{i}.mp4", "success": success, "length": result.length}
            write_video(folder / entry[name]["file"], frames, fps)
            if name != "base" and "base" in entry:
                before = read_video(folder / entry["base"]["file"])
                films = [("base", before, entry["base"]["success"]), (name, frames, success)]
                entry["pair"] = f"pair-{i}.mp4"
                write_video(folder / entry["pair"], side_by_side(films), fps)
        write_atomically(folder / "videos.json", to_json(entries))
