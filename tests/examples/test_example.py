"""The example package: each of its parts is found by its name, runs through the command line, and learns."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from treadle.algorithms.estimators import Timeline
from treadle.cli import app
from treadle.commands.probe import probe
from treadle.config.algorithm import known_algorithms
from treadle.config.loading import load_recipe
from treadle.config.recipes import recipes
from treadle.policies import load_policy
from treadle.policies.load import installed_policies
from treadle.reporting.metrics import read_metrics
from treadle.runtime.loop import train
from treadle.runtime.recorder import Recorder
from treadle.simulators.build import installed_simulators
from treadle_reach.__main__ import write_fresh_policy
from treadle_reach.awr import ReplayBuffer
from treadle_reach.estimator import step_baseline
from treadle_reach.reward import ProgressReach

pytestmark = pytest.mark.integration

PACKAGE = Path(__file__).parents[2] / "examples" / "treadle-reach"
RECIPES = ("reach-ppo", "reach-filtered-bc", "reach-awr")
SMALL = ("device=cpu", "torch_threads=1", "iterations=2", "simulator.slots=16")
UNSEEN = ("evaluation.episodes=4", "evaluation.videos=0")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fresh policy that the recipes begin with."""
    monkeypatch.chdir(tmp_path)
    write_fresh_policy(tmp_path / "runs" / "fresh")
    return tmp_path


def treadle(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_the_installed_package_is_this_one():
    declared = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    found = {(entry.group, entry.name): entry.value for entry in distribution("treadle-reach").entry_points}
    assert found == {(group, name): value for group, names in declared.items() for name, value in names.items()}
    page = (PACKAGE.parents[1] / "docs" / "your-own-package.md").read_text()
    (block,) = re.findall(r"```toml\n(\[project.*?)```", page, re.DOTALL)
    assert tomllib.loads(block)["project"]["entry-points"] == declared


def test_each_part_is_found_by_its_name():
    assert {"reach", "reach-progress"} <= installed_simulators().keys()
    assert "gaussian" in installed_policies()
    assert {"filtered_bc", "awr"} <= known_algorithms().keys()
    assert set(RECIPES) <= recipes().keys()
    assert all(name in treadle("recipes").output for name in RECIPES)
    assert probe("reach") == "1 suite, frames 16 x 16 from top"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("reach-pop",), "did you mean 'reach-ppo'"),
        (("reach-ppo", "simulator.name=raech"), "did you mean 'reach'"),
        (("reach-ppo", "algorithm.kind=filtered-bc"), "did you mean 'filtered_bc'"),
        (("reach-ppo", "policy.kind=gausian"), "did you mean 'gaussian'"),
        (("reach-awr", "algorithm.bufer=10"), "did you mean 'algorithm.buffer'"),
        (("reach-awr", "critic.kind=privileged"), "use critic.kind 'value_head'"),
    ],
)
def test_misspelt_names_are_told(words: tuple[str, ...], said: str):
    result = treadle("train", *words)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run(here: Path, name: str):
    result = treadle("train", name, *SMALL, "evaluation.episodes=4", "evaluation.videos=1")
    assert result.exit_code == 0, result.output
    run = here / "runs" / name
    assert [row["iteration"] for row in read_metrics(run)] == [1, 2]
    assert "has not recorded" not in (run / "report.html").read_text()
    # What it leaves behind can be read, measured and started from.
    inspected = treadle("policy", "inspect", str(run / "policy"), "--json", "contents.json")
    assert inspected.exit_code == 0, inspected.output
    contents = json.loads(Path("contents.json").read_text())
    assert (contents["policy"], contents["recipes"]) == ("gaussian", [*sorted(RECIPES)])
    measured = treadle(
        "eval",
        str(run / "policy"),
        "--suite",
        "train",
        "--episodes",
        "4",
        "simulator.name=reach",
        "simulator.horizon=20",
    )
    assert measured.exit_code == 0, measured.output
    assert "train" in measured.output


def test_the_estimator_in_place_of_a_critic(here: Path):
    given = ("algorithm.estimator=treadle_reach.estimator:step_baseline", "algorithm.partial_reset=false")
    result = treadle("train", "reach-ppo", *SMALL, *UNSEEN, *given, "critic.kind=none")
    assert result.exit_code == 0, result.output
    rows = read_metrics(here / "runs" / "reach-ppo")
    assert rows[-1]["update/steps"] > 0
    assert "critic/loss" not in rows[-1]


def test_the_algorithm_trains_any_policy_on_any_simulator(here: Path):
    """A policy of tokens on the tabletop, whose episodes succeed half of the time."""
    other = ("simulator.name=tabletop", "simulator.horizon=40", "policy.checkpoint=tabletop-base", "policy.kind=none")
    result = treadle("train", "reach-filtered-bc", *SMALL, *UNSEEN, *other, "iterations=1", "algorithm.successes=2")
    assert result.exit_code == 0, result.output
    (row,) = read_metrics(here / "runs" / "reach-filtered-bc")
    assert row["update/imitated_episodes"] >= 1
    assert row["update/policy_loss"] > 0


def test_workers_import_neither_torch_nor_policies():
    code = (
        "import sys, treadle_reach.simulator, treadle_reach.reward;"
        "print({'torch', 'treadle.policies'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["reach-filtered-bc", "reach-awr"])
def test_a_run_that_is_resumed_equals_one_that_was_not(here: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    def config(run: str):
        return load_recipe(name, [*SMALL, *UNSEEN, f"name={run}", "iterations=4"])

    whole = train(config("whole"))
    write = Recorder.write

    def stop_after_two(recorder: Recorder, iteration: int, *others) -> None:
        write(recorder, iteration, *others)
        recorder.stop_asked = iteration == 2

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(config("stopped"))
    stopped = train(config("stopped"))
    one, other = (
        [{key: x for key, x in row.items() if key.startswith("update/")} for row in read_metrics(folder)]
        for folder in (whole, stopped)
    )
    assert one == other
    left, right = (load_policy(folder / "policy", device="cpu").state_dict() for folder in (whole, stopped))
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_progress_is_paid_for():
    """On the way to a dot at 0.5 the hand is at 0.2, 0.1, 0.3 and 0.45, which is there, and pays 1 more."""
    simulator, slots = ProgressReach(2), np.array([1])
    simulator.reset(slots, simulator.scenarios("train", "train")[:1])
    simulator.dot[1] = 0.5, 0
    actions = np.array([[[0.2, 0], [-0.1, 0], [0.2, 0], [0.15, 0], [0.2, 0]]], np.float32)
    outcome = simulator.step(slots, actions, np.array([5]))
    assert outcome.reward[0] == pytest.approx([0.2, -0.1, 0.2, 1.15, 0], abs=1e-6)
    assert outcome.success[0].tolist() == [False, False, False, True, False]


def test_step_baseline_by_hand():
    """Returns to go are 2, 1 and, in the other slot, 4 at first only: means 3 and 1."""
    rewards = torch.tensor([[1.0, 4.0], [1.0, 0.0]])
    valid, zeros = torch.tensor([[True, True], [True, False]]), torch.zeros(2, 2)
    ended = torch.tensor([[False, True], [True, False]])
    scenarios = torch.tensor([[0, 1], [0, 1]])
    timeline = Timeline(rewards, zeros, ended, zeros, zeros[0], valid, scenarios, gamma=1.0, gae_lambda=1.0)
    assert step_baseline(timeline).advantages.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_the_buffer_forgets_the_oldest():
    buffer = ReplayBuffer(3)
    for first in (0, 2):
        buffer.add({"x": torch.arange(first, first + 2), "y": torch.zeros(2, 5)})
    assert len(buffer) == 3
    assert buffer.rows["x"].tolist() == [1, 2, 3]
    assert set(buffer.draw(100, torch.device("cpu"))["x"].tolist()) == {1, 2, 3}


@pytest.mark.full
@pytest.mark.parametrize(("name", "reached"), [("reach-ppo", 0.8), ("reach-filtered-bc", 0.4), ("reach-awr", 0.8)])
def test_recipes_learn(here: Path, name: str, reached: float):
    """A fresh policy reaches about a tenth of the dots."""
    assert treadle("train", name, "device=cpu", "torch_threads=1", "evaluation.videos=0").exit_code == 0
    summary = json.loads((here / "runs" / name / "summary.json").read_text())
    assert summary["base"]["in_distribution"]["success"] < 0.3
    assert summary["final"]["in_distribution"]["success"] > reached
