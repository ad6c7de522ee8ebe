"""The evaluator: it measures and films the policy of a run, before and after training."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treadle.config.schema import TrainConfig
from treadle.data.step import EpisodeResult
from treadle.errors import OutputError
from treadle.evaluation.episodes import EPISODES_FILE, EpisodeFile, Episodes, write_episodes
from treadle.evaluation.evaluate import summarize_suite
from treadle.evaluation.films import choose_scenes
from treadle.evaluation.manifest import identity, manifest
from treadle.evaluation.statistics import succeeded
from treadle.files import to_json, write_atomically
from treadle.reporting.console import RunConsole
from treadle.reporting.folder import read_evaluation, read_videos
from treadle.reporting.video import read_video, side_by_side, write_video
from treadle.runtime.roles import Players
from treadle.training.state import checkpoint_name

PARTIAL = "{}-{}.partial.jsonl"
"""The episodes of an evaluation that is being played, by its name and identity."""
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

    def evaluate_base(self, checkpoint: Path, version: int) -> None:
        """Measure and film the policy that training starts from, unless that was done before. Raises OutputError where
        it was done and is gone: after iteration `version` the players have other weights.
        """
        path = self._directory / "evaluation" / "base.json"
        if path.exists():
            return
        if version:
            raise OutputError(
                f"{path} is missing, and {version} iterations were done, so the run's policy is no longer the base; "
                "put the file back, or begin another run with name=..."
            )
        self.evaluate("base", checkpoint)

    def evaluate(self, name: str, checkpoint: Path, iteration: int | None = None) -> None:
        """Write `evaluation/NAME.json`, its episodes beside it, and the films of NAME. Of an evaluation that was cut
        short, only what is missing is played; the policy of an iteration that was just evaluated plays nothing.
        """
        start = time.perf_counter()
        made = manifest(checkpoint, self._config.policy, self._config.simulator, self._config.evaluation)
        made |= {"policy_facts": self._players.policy_facts} | self._facts
        if self._latest is not None and self._latest[0] == iteration:
            suites, episodes = self._latest[1]
        else:
            with EpisodeFile(self._directory / "evaluation" / PARTIAL.format(name, identity(made))).appending() as kept:
                suites, episodes = self._measure(name, kept)
        self._keep(name, episodes)
        self._film(name, episodes)
        self._write(name, {"suites": suites, "held_out": self._players.spec.held_out, "manifest": made}, start)
        for partial in (self._directory / "evaluation").glob(PARTIAL.format(name, "*")):
            partial.unlink()

    def evaluate_iteration(self, iteration: int) -> dict[str, float]:
        """Write the evaluation of a policy that is being trained, without films; returns success by suite."""
        start, name = time.perf_counter(), checkpoint_name(iteration)
        measured = suites, episodes = self._measure(name, EpisodeFile(None))
        self._latest = iteration, measured
        self._keep(name, episodes)
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

    def _measure(self, name: str, kept: EpisodeFile) -> _Measured:
        """Play what is not kept yet of every suite; returns all of it."""

        def results_of(suite: str) -> list[EpisodeResult]:
            done = kept.episodes.setdefault(suite, {})

            def report(ended: Mapping[int, EpisodeResult], total: int) -> None:
                for number, result in ended.items():
                    kept.add(suite, number, result)
                self._console.progress(len(done), total)

            self._console.stage(f"evaluating {name}: {suite}")
            self._players.evaluate(suite, report, list(done))
            return [done[number] for number in sorted(done)]

        config = self._config.evaluation
        episodes = {suite: results_of(suite) for suite in config.suites}
        return {suite: summarize_suite(suite, of, config.success) for suite, of in episodes.items()}, episodes

    def _keep(self, name: str, episodes: Mapping[str, Sequence[EpisodeResult]]) -> None:
        numbered: Episodes = {suite: dict(enumerate(results)) for suite, results in episodes.items()}
        write_episodes(self._directory / "evaluation" / f"{name}.{EPISODES_FILE}", numbered)

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
