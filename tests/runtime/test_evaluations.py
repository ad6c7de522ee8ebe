"""Evaluations while training: they change nothing, and find the best policy."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from miniature import run_config
from treadle.config.on_policy import PPOConfig
from treadle.config.schema import EvaluationConfig, OptimizerConfig, TrainConfig
from treadle.data.step import EpisodeResult
from treadle.evaluation.episodes import EPISODES_FILE, EpisodeFile, read_episodes
from treadle.files import to_json
from treadle.policies import load_policy
from treadle.reporting.console import RunConsole
from treadle.reporting.report import write_report
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.loop import train
from whole_runs import assert_resumes, final_weights, numbers

AVERAGE = OptimizerConfig(average=0.5)


def evaluation(every: int) -> EvaluationConfig:
    return EvaluationConfig(suites=("train", "vision"), episodes=3, slots=3, videos=0, every=every)


def suites(directory: Path, name: str) -> Any:
    return json.loads((directory / "evaluation" / f"{name}.json").read_text())["suites"]


@pytest.mark.integration
@pytest.mark.parametrize("overlap", ["none", "stream", "async"])
def test_evaluations_change_nothing(tmp_path: Path, checkpoint: Path, overlap: str):
    """Episodes go on after them where they were, also those that are played ahead."""
    fields: dict[str, Any] = {"optimizer": AVERAGE, "overlap": overlap, "algorithm": PPOConfig(minibatch=8, rounds=2)}
    alone = train(run_config(tmp_path / "alone", checkpoint, evaluation=evaluation(0), **fields))
    evaluated = train(run_config(tmp_path / "evaluated", checkpoint, evaluation=evaluation(1), **fields))
    found, measured = numbers(evaluated), ("evaluation/train", "evaluation/vision")
    assert [set(measured) <= row.keys() for row in found] == [True] * 4
    assert numbers(alone) == [{key: x for key, x in row.items() if key not in measured} for row in found]
    one, other = final_weights(alone), final_weights(evaluated)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert suites(alone, "final") == suites(evaluated, "final")
    assert "Success in evaluations" in write_report(evaluated).read_text()
    assert "Success in evaluations" not in write_report(alone).read_text()


@pytest.mark.integration
@pytest.mark.parametrize("overlap", ["none", "async"])
def test_what_is_evaluated_and_kept_is_what_a_shorter_run_ends_with(tmp_path: Path, checkpoint: Path, overlap: str):
    fields: dict[str, Any] = {"optimizer": AVERAGE, "overlap": overlap}
    short = train(run_config(tmp_path / "short", checkpoint, iterations=2, evaluation=evaluation(0), **fields))
    whole = train(run_config(tmp_path / "whole", checkpoint, evaluation=evaluation(2), **fields))
    assert suites(whole, "iteration-000002") == suites(short, "final")
    kept = load_policy(whole / "best", device="cpu").state_dict()  # type: ignore[attr-defined]
    ended = final_weights(short)
    assert all(torch.equal(kept[name], ended[name]) for name in ended)


@pytest.mark.integration
def test_a_run_that_is_extended_has_the_evaluations_of_a_longer_one(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    whole = train(run_config(tmp_path / "whole", checkpoint, evaluation=evaluation(1), optimizer=AVERAGE))
    said = capsys.readouterr().out
    assert "evaluating iteration-000004: vision" in said
    assert "evaluating final" not in said, "it is what the last iteration's evaluation found"
    assert suites(whole, "final") == suites(whole, "iteration-000004")
    for iterations in (2, 4):
        fields: dict[str, Any] = {"iterations": iterations, "evaluation": evaluation(1), "optimizer": AVERAGE}
        extended = train(run_config(tmp_path / "extended", checkpoint, **fields))
    assert numbers(whole) == numbers(extended)
    assert suites(whole, "final") == suites(extended, "final")


@pytest.mark.integration
def test_a_run_with_evaluations_resumes_exactly(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    assert_resumes(tmp_path, checkpoint, monkeypatch, evaluation=evaluation(1), optimizer=AVERAGE)


@pytest.mark.integration
def test_an_evaluation_that_is_cut_short_goes_on(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the base, and of the result: no episode is played twice, and results are those of a run left alone."""
    whole = train(run_config(tmp_path / "whole", checkpoint, evaluation=evaluation(0)))
    config, folder = run_config(tmp_path, checkpoint, evaluation=evaluation(0)), tmp_path / "run" / "evaluation"
    progress, add, played = RunConsole.progress, EpisodeFile.add, list[str]()
    stops = [2, 4, 5, 9]

    def stop(console: RunConsole, done: int, total: int) -> None:
        progress(console, done, total)
        if stops and len(played) >= stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt

    def count(kept: EpisodeFile, suite: str, number: int, result: EpisodeResult) -> None:
        played.append(suite)
        add(kept, suite, number, result)

    monkeypatch.setattr(RunConsole, "progress", stop)
    monkeypatch.setattr(EpisodeFile, "add", count)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (kept,) = folder.iterdir()
    assert sum(map(len, read_episodes(kept).values())) == 4
    shutil.copy(kept, folder / "final-of-another.partial.jsonl")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config)
    train(config)
    assert played == 2 * (3 * ["train"] + 3 * ["vision"]), "base and result, each episode once"
    assert not list(folder.glob("*.partial.jsonl"))
    for name in ("base", "final"):
        assert suites(tmp_path / "run", name) == suites(whole, name)
        file = f"{name}.{EPISODES_FILE}"
        assert read_episodes(folder / file) == read_episodes(whole / "evaluation" / file)


@pytest.mark.integration
def test_episodes_of_other_settings_are_not_used(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder of a run without an iteration is free for another configuration."""
    longer, shorter = (evaluation(0).model_copy(update={"horizon": horizon}) for horizon in (8, 2))
    whole = train(run_config(tmp_path / "whole", checkpoint, evaluation=shorter, iterations=2))

    def stop(_: RunConsole, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunConsole, "progress", stop)
        with pytest.raises(KeyboardInterrupt):
            train(run_config(tmp_path, checkpoint, evaluation=longer, iterations=2))
    found = train(run_config(tmp_path, checkpoint, evaluation=shorter, iterations=2))
    assert suites(found, "base") == suites(whole, "base")


def test_the_first_of_the_best_is_kept(tmp_path: Path):
    config = TrainConfig(evaluation=EvaluationConfig(suites=("vision", "train"), every=10))
    evaluator = Evaluator(config, tmp_path, None, RunConsole("run", 9))  # type: ignore[arg-type]
    (tmp_path / "evaluation").mkdir()
    for iteration, (vision, train_) in {10: (0.5, 0.9), 20: (0.6, 0.1), 30: (0.6, 0.2), 40: (0.7, 0.0)}.items():
        found = {
            suite: {"success": rate, "episodes": 10, "ci95": [0.0, 1.0]}
            for suite, rate in (("vision", vision), ("train", train_))
        }
        path = tmp_path / "evaluation" / f"iteration-{iteration:06d}.json"
        path.write_text(to_json({"suites": found}))
    assert [evaluator.is_best(iteration) for iteration in (10, 20, 30, 40)] == [True, True, False, True]
