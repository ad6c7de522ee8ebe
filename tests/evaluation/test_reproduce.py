"""An evaluation again, from its manifest."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fakes import scenario
from miniature import SIMULATOR
from treadle.cli import app
from treadle.commands.evaluation import Request, reproduce
from treadle.config.protocols import EvalConfig
from treadle.config.schema import EvaluationConfig, LoadingConfig, SamplingConfig
from treadle.data.step import EpisodeResult
from treadle.errors import ConfigError
from treadle.evaluation.evaluate import evaluate_checkpoint
from treadle.evaluation.reproduce import (
    changed_episodes,
    differences,
    read_manifest,
    reproduction,
    reproduction_grids,
    settings_of,
    verdicts,
)
from treadle.files import to_json, write_atomically

SAMPLED = EvaluationConfig(suites=("train", "vision"), episodes=3, slots=2, videos=0, sampling=SamplingConfig())


def test_differences_are_named():
    before = {
        "weights_sha256": {"model.safetensors": "a" * 64},
        "simulator": {"name": "x", "slots": 2, "options": {}},
        "simulator_versions": {"mujoco": "3.3.7", "old": "1"},
        "scenarios": {"train": {"count": 3, "sha256": "b" * 64}},
        "policy_facts": {"range": [1, 2]},
        "commit": None,
        "device": "cpu",
    }
    after = {
        "weights_sha256": {"model.safetensors": "c" * 64},
        "simulator": {"name": "x", "slots": 9, "options": {"reward": "sparse"}},
        "simulator_versions": {"mujoco": "3.17.0"},
        "scenarios": {"train": {"count": 3, "sha256": "d" * 64}},
        "policy_facts": {"range": (1, 2)},
        "commit": None,
    }
    assert [str(difference) for difference in differences(before, after)] == [
        "weights: weights_sha256.model.safetensors was aaaaaaaaaaaa, is cccccccccccc",
        'simulator: simulator.options.reward was absent, is "sparse"',
        'versions where the simulator lives: simulator_versions.mujoco was "3.3.7", is "3.17.0"',
        'versions where the simulator lives: simulator_versions.old was "1", is absent',
        "scenario list: scenarios.train.sha256 was bbbbbbbbbbbb, is dddddddddddd",
    ]
    assert differences(before, before) == []


def rate(success: float, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    return {"success": success, "ci95": [low, high]}


def test_verdicts():
    before = {"suites": {"a": rate(0.5, 0.4, 0.6), "b": rate(0.5, 0.4, 0.6), "c": rate(0.5), "d": rate(1.0, 0.7, 1.0)}}
    after = {"suites": {"a": rate(0.4), "b": rate(0.39), "d": rate(1.0)}}
    assert verdicts(before, after) == {"a": True, "b": False, "c": False, "d": True}


def test_episodes_that_came_out_otherwise():
    def results(*successes: bool) -> dict[int, EpisodeResult]:
        return {i: EpisodeResult(scenario(i), good, not good, 0.0, 1) for i, good in enumerate(successes)}

    before, after = {"a": results(True, False, True), "b": results(True)}, {"a": results(True, True)}
    assert changed_episodes(before, after, "once") == (2, 1)


def test_the_settings_of_a_manifest():
    config = EvalConfig(simulator=SIMULATOR, evaluation=SAMPLED, policy=LoadingConfig(kind="x", options={"a": 1}))
    manifest = json.loads(to_json(config.model_dump(mode="json")))
    assert settings_of(manifest) == config
    assert settings_of(manifest, ["evaluation.slots=1"]).evaluation.slots == 1
    with pytest.raises(ConfigError, match=r"manifest: unknown key 'simulator.wind'"):
        settings_of({**manifest, "simulator": {"wind": 3}})


@pytest.mark.parametrize("text", ["[]", "{}", '{"suites": {}, "simulator": {}}'])
def test_a_file_that_is_no_manifest(tmp_path, text):
    write_atomically(tmp_path / "x.json", text)
    with pytest.raises(ConfigError, match=r"x.json: no manifest of an evaluation with its results; give the manifest"):
        read_manifest(tmp_path / "x.json")


def test_what_a_page_says():
    before = {"suites": {"train": rate(0.5, 0.4, 0.6)}}
    report = {"suites": {"train": rate(0.7)}}
    found = {
        "suites": {"train": False},
        "differences": [{"what": "weights", "key": "k", "before": "x", "after": "y"}],
        "episodes_compared": 8,
        "episodes_changed": 2,
    }
    then, differing = reproduction_grids(before, report, found)
    assert [row.cells for row in then.rows] == [["train", "50.0 %", "40.0 to 60.0", "70.0 %", "OUTSIDE"]]
    assert then.note == "Of 8 episodes, 2 came out otherwise."
    assert [row.cells for row in differing.rows] == [["weights", "k", "x", "y"]]
    (same,) = reproduction_grids(before, report, found | {"differences": [], "episodes_compared": 0})
    assert same.note == "Nothing differs that results may depend on."


@pytest.fixture
def evaluated(checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the checkpoint, and the folder of its evaluation."""
    copy = tmp_path / "mine"
    shutil.copytree(checkpoint, copy)
    report = evaluate_checkpoint(copy, LoadingConfig(), SIMULATOR, SAMPLED, "cpu", output=tmp_path / "first")
    return copy, Path(report["folder"])


def again(folder: Path, *words: str) -> tuple[bool, dict[str, Any], str]:
    """Whether it is inside, the result, and what was said."""
    output = folder.parents[1] / "again"
    console = Console(width=200, force_terminal=False)
    with console.capture() as said:
        inside = reproduce(folder, Request(words, output=output, device="cpu", json=output / "result.json"), console)
    return inside, json.loads((output / "result.json").read_text())["reproduction"], said.get()


@pytest.mark.integration
def test_an_evaluation_is_reproduced_to_the_last_episode(evaluated):
    _, folder = evaluated
    inside, found, said = again(folder, "evaluation.slots=1", "collection.workers=1")
    assert inside
    assert found == {
        "inside": True, "suites": {"train": True, "vision": True}, "differences": [], "episodes_compared": 6,
        "episodes_changed": 0,
    }  # fmt: skip
    assert "Nothing differs that results may depend on." in said
    pages = sorted(folder.parents[1].glob("again/mine-reproduced-*/report.html"))
    assert "Then and now" in pages[0].read_text()
    # It is played anew each time.
    assert again(folder)[0]
    assert len(sorted(folder.parents[1].glob("again/mine-reproduced-*"))) == 2


@pytest.mark.integration
def test_what_changed_is_named_before_it_is_played(evaluated):
    checkpoint, folder = evaluated
    weights = load_file(checkpoint / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1e-3
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["simulator_versions"]["mujoco"] = "3.3.7"
    manifest["scenarios"]["vision"]["sha256"] = "0" * 64
    manifest["suites"]["train"]["ci95"] = [0.9, 1.0]
    write_atomically(folder / "manifest.json", to_json(manifest))
    inside, found, said = again(folder)
    assert not inside
    assert found["suites"] == {"train": False, "vision": True}
    assert {(item["what"], item["key"]) for item in found["differences"]} == {
        ("weights", "weights_sha256.model.safetensors"),
        ("versions where the simulator lives", "simulator_versions.mujoco"),
        ("scenario list", "scenarios.vision.sha256"),
    }
    first = said.splitlines()[0]
    assert first.startswith("differs from the manifest: weights: weights_sha256.model.safetensors was ")
    assert "OUTSIDE" in said


@pytest.mark.integration
@pytest.mark.parametrize(("interval", "code"), [([0.0, 1.0], 0), ([0.9, 1.0], 1)])
def test_the_exit_code_says_inside_or_outside(evaluated, tmp_path, monkeypatch, interval, code):
    """The miniature policy fails, so an interval that begins at 0.9 does not hold its success."""
    _, folder = evaluated
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["suites"]["train"]["success"] < 0.9
    for suite in manifest["suites"].values():
        suite["ci95"] = interval
    write_atomically(folder / "manifest.json", to_json(manifest))
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["eval", "--reproduce", str(folder / "manifest.json"), "--device", "cpu"])
    assert said.exit_code == code
    assert ("OUTSIDE" in said.stdout) is bool(code)


def test_the_exit_code_of_a_mistake(tmp_path):
    write_atomically(tmp_path / "m.json", "{}")
    said = CliRunner().invoke(app, ["eval", "--reproduce", str(tmp_path / "m.json")])
    assert said.exit_code == 2
    assert "no manifest of an evaluation" in said.stderr


@pytest.mark.integration
def test_a_file_of_json_is_a_manifest_too(evaluated, tmp_path):
    _, folder = evaluated
    before = read_manifest(folder / "result.json")
    assert before.keys() >= {"suites", "evaluation", "checkpoint_path"}
    report = json.loads((folder / "result.json").read_text()) | {"folder": str(folder)}
    assert reproduction(folder / "result.json", before, report)["episodes_compared"] == 6


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(["a", "b"]), "--reproduce: found 2 checkpoints beside it"),
        (Request([], protocol="treadle/tabletop"), "--reproduce: found --protocol beside it"),
        (Request([]), "it does not say where its checkpoint is; name the checkpoint beside --reproduce"),
    ],
)
def test_what_does_not_go_beside_a_manifest(tmp_path, request_, message):
    made = EvalConfig(simulator=SIMULATOR).model_dump(mode="json")
    write_atomically(tmp_path / "m.json", to_json({**made, "suites": {}}))
    with pytest.raises(ConfigError, match=message):
        reproduce(tmp_path / "m.json", request_, Console())
