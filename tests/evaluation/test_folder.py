"""What an evaluation keeps: episodes as they end, in a folder that the same call finds again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fakes import scenario
from miniature import SIMULATOR
from treadle.config.run_directory import lock_directory
from treadle.config.schema import CollectionConfig, EvaluationConfig, LoadingConfig, SamplingConfig
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError, OutputError
from treadle.evaluation.episodes import EPISODES_FILE, EpisodeFile, read_episodes
from treadle.evaluation.evaluate import evaluate_checkpoint
from treadle.evaluation.films import choose_films, choose_scenes
from treadle.evaluation.folder import EvaluationFolder, read_videos
from treadle.evaluation.manifest import identity

SAMPLED = EvaluationConfig(suites=("train", "vision"), episodes=4, slots=2, videos=0, sampling=SamplingConfig())


class Watch:
    """It counts, and stops the evaluation after some episodes, as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.began: list[tuple[dict[str, int], dict[str, int]]] = []
        self.played = 0
        self.stop_after = stop_after

    def begin(self, made: Any, wanted: Mapping[str, int], done: Mapping[str, int]) -> None:
        self.began.append((dict(wanted), dict(done)))

    def ended(self, suite: str, success: bool) -> None:
        self.played += 1
        if self.played == self.stop_after:
            raise KeyboardInterrupt

    def stage(self, text: str) -> None:
        pass


def evaluate(checkpoint: Path, output: Path | None, evaluation: EvaluationConfig = SAMPLED, **settings: Any) -> Any:
    simulator = settings.pop("simulator", SIMULATOR)
    return evaluate_checkpoint(checkpoint, LoadingConfig(), simulator, evaluation, "cpu", output=output, **settings)


def result(index: int = 0, *, good: bool = False) -> EpisodeResult:
    return EpisodeResult(scenario(index), good, good, 0.1 + 0.2, 7)


def test_episodes_are_read_as_they_were_written(tmp_path):
    path = tmp_path / EPISODES_FILE
    with EpisodeFile(path).appending() as file:
        file.add("train", 0, result(0, good=True))
        file.add("odd", 3, result(1))
        assert read_episodes(path) == {"train": {0: result(0, good=True)}, "odd": {3: result(1)}}


def test_a_line_that_was_cut_short_is_dropped_and_another_is_an_error(tmp_path):
    path = tmp_path / EPISODES_FILE
    with EpisodeFile(path).appending() as file:
        for i in range(3):
            file.add("train", i, result(i))
    whole = path.read_text()
    path.write_text(whole[:-20])
    with EpisodeFile(path).appending() as file:
        assert list(file.episodes["train"]) == [0, 1]
        file.add("train", 2, result(2))
    assert path.read_text() == whole
    path.write_text("nonsense\n" + whole)
    with pytest.raises(OutputError, match="line 1: not an episode"):
        read_episodes(path)


@pytest.mark.integration
def test_an_interrupted_evaluation_goes_on_where_it_was(checkpoint, tmp_path):
    whole = evaluate(checkpoint, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, tmp_path / "cut", watcher=Watch(stop_after=5))
    (folder,) = (tmp_path / "cut").iterdir()
    kept = json.loads((folder / "result.json").read_text())
    assert (kept["complete"], kept["wanted"]) == (False, 8)
    assert sum(map(len, read_episodes(folder / EPISODES_FILE).values())) == 5
    watch = Watch()
    again = evaluate(checkpoint, tmp_path / "cut", watcher=watch)
    assert watch.began == [({"train": 4, "vision": 4}, {"train": 4, "vision": 1})]
    assert watch.played == 3
    assert again["folder"] == str(folder)
    assert again["suites"] == whole["suites"]
    assert read_episodes(folder / EPISODES_FILE) == read_episodes(Path(whole["folder"]) / EPISODES_FILE)
    third = Watch()
    assert evaluate(checkpoint, tmp_path / "cut", watcher=third)["suites"] == whole["suites"]
    assert third.played == 0


@pytest.mark.integration
def test_a_fresh_evaluation_has_a_folder_of_its_own_and_goes_on_there(checkpoint, tmp_path):
    evaluation = SAMPLED.model_copy(update={"suites": ("train",)})
    first = evaluate(checkpoint, tmp_path, evaluation)
    with pytest.raises(KeyboardInterrupt):
        evaluate(checkpoint, tmp_path, evaluation, fresh=True, watcher=Watch(stop_after=1))
    watch = Watch()
    second = evaluate(checkpoint, tmp_path, evaluation, fresh=True, watcher=watch)
    assert watch.played == 3
    assert second["folder"] == first["folder"] + "-2"
    assert second["suites"] == first["suites"]


@pytest.mark.integration
def test_a_folder_in_use_is_an_error(checkpoint, tmp_path):
    folder = Path(evaluate(checkpoint, tmp_path)["folder"])
    with lock_directory(folder, print), pytest.raises(OutputError, match="choose another folder with --output"):
        evaluate(checkpoint, tmp_path)


@pytest.mark.integration
def test_horizons_of_suites_that_are_not_there(checkpoint):
    evaluate(checkpoint, None, SAMPLED.model_copy(update={"episodes": 1, "horizons": {"semantic": 4}}))
    with pytest.raises(ConfigError, match=r"evaluation.horizons: tabletop has no suite 'trian', did .* from train, "):
        evaluate(checkpoint, None, SAMPLED.model_copy(update={"horizons": {"trian": 4}}))


@pytest.mark.integration
def test_the_same_evaluation_twice_is_the_same_in_other_batches_lanes_and_workers(checkpoint, tmp_path):
    first = evaluate(checkpoint, tmp_path)
    episodes = read_episodes(Path(first["folder"]) / EPISODES_FILE)
    assert len({r.episode_return for of in episodes.values() for r in of.values()}) > 4
    for slots, collection in (
        (2, CollectionConfig()),
        (1, CollectionConfig()),
        (4, CollectionConfig(lanes=2, workers=2)),
        (3, CollectionConfig(lanes=3, workers=3, kind="processes")),
    ):
        evaluation = SAMPLED.model_copy(update={"slots": slots})
        again = evaluate(checkpoint, tmp_path, evaluation, collection=collection, fresh=True)
        assert again["folder"] != first["folder"]
        assert read_episodes(Path(again["folder"]) / EPISODES_FILE) == episodes
        assert again["suites"] == first["suites"]
        assert identity(again["manifest"]) == identity(first["manifest"])


@pytest.mark.integration
def test_another_evaluation_has_another_folder(checkpoint, tmp_path):
    paths = {
        evaluate(checkpoint, tmp_path, evaluation.model_copy(update={"episodes": 1}), simulator=simulator)["folder"]
        for evaluation, simulator in (
            (SAMPLED, SIMULATOR),
            (SAMPLED.model_copy(update={"horizons": {"train": 4}}), SIMULATOR),
            (SAMPLED, SIMULATOR.model_copy(update={"options": {**SIMULATOR.options, "reward": "sparse"}})),
        )
    }
    assert len(paths) == 3


@pytest.mark.integration
def test_films_of_failures_and_successes(checkpoint, tmp_path):
    report = evaluate(checkpoint, tmp_path, SAMPLED.model_copy(update={"videos": 2}))
    films = read_videos(Path(report["folder"]))
    # The random policy has no success, so both are failures: the first of each suite.
    assert [(film["suite"], film["success"]) for film in films] == [("train", False), ("vision", False)]
    assert all((Path(report["folder"]) / "videos" / film["file"]).stat().st_size > 1000 for film in films)


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (4, [("a", 0), ("b", 1), ("a", 1), ("b", 0)]),
        (3, [("a", 0), ("b", 1), ("a", 1)]),
        (9, [("a", 0), ("b", 1), ("a", 2), ("a", 1), ("b", 0)]),
    ],
)
def test_which_episodes_are_filmed(count, chosen):
    folder = EvaluationFolder(None, EpisodeFile(None))
    for number, good in enumerate((False, True, False)):
        folder.add("a", number, result(number, good=good))
    for number, good in enumerate((True, False)):
        folder.add("b", number, result(number, good=good))
    assert choose_films(folder, "once", count) == chosen


@pytest.mark.parametrize(
    ("base", "count", "chosen"),
    [
        # Failures of the suites in turn, and a success at the end.
        ({"a": (True, False, False), "b": (False, True)}, 4, [("a", 1), ("b", 0), ("a", 2), ("a", 0)]),
        ({"a": (True, False, False), "b": (False, True)}, 2, [("a", 1), ("a", 0)]),
        ({"a": (True, False, True), "b": (True,)}, 4, [("a", 1), ("a", 0), ("b", 0), ("a", 2)]),
        ({"a": (False, False, False)}, 2, [("a", 0), ("a", 1)]),
        ({"a": (True, True)}, 9, [("a", 0), ("a", 1)]),
        ({"a": (True, False)}, 1, [("a", 0)]),
    ],
)
def test_which_scenarios_are_filmed_before_and_after_training(base, count, chosen):
    results = {suite: [result(i, good=good) for i, good in enumerate(of)] for suite, of in base.items()}
    assert choose_scenes(results, "once", count) == chosen
