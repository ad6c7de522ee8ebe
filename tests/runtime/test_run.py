"""Whole runs on the real tabletop: what they write, what they refuse."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from miniature import run_config
from treadle.config.on_policy import GRPOConfig, PPOConfig
from treadle.config.schema import (
    CollectionConfig,
    CriticConfig,
    EvaluationConfig,
    SimulatorConfig,
    TrainConfig,
)
from treadle.errors import ConfigError, OutputError
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.runtime.build import open_run
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.loop import train
from treadle.runtime.member import build_critic
from treadle.simulators.protocol import tool_motions
from treadle.training.checkpoints import list_checkpoints
from whole_runs import final_weights

pytestmark = pytest.mark.integration

SUITES = {"in_distribution", "vision"}


def test_a_run_writes_all_it_promises(whole: tuple[TrainConfig, Path]):
    config, directory = whole
    assert directory == config.output / "run"
    rows = read_metrics(directory)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert {
        "seconds",
        "rollout/episodes",
        "rollout/control_steps",
        "time/simulate",
        "time/generate",
        "time/collect",
        "idle/simulate",
        "idle/generate",
        "time/critic",
        "time/iteration",
        "speed/control_steps_per_second",
        "critic/loss",
        "critic/explained_variance",
        "critic/mean_return",
        "update/learning_rate",
    } <= rows[0].keys()
    assert {"update/policy_loss", "update/log_prob_gap", "update/steps", "time/update"} <= rows[1].keys() - rows[
        0
    ].keys()
    assert all(row["update/log_prob_gap"] < 1e-4 for row in rows[1:])
    assert rows[1]["update/steps"] == 4, "12 decisions in minibatches of 8 and 4, twice"
    assert (directory / "report.html").stat().st_size > 10_000
    assert [path.name for path in list_checkpoints(directory / "checkpoints")] == ["iteration-000004"]
    assert (directory / "videos" / "base-0.mp4").is_file()
    assert json.loads((directory / "machine.json").read_text())["device"] == "cpu"


def test_the_trace_holds_each_role_and_lane(whole: tuple[TrainConfig, Path]):
    config, directory = whole
    events = [e for e in json.loads((directory / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert {event["args"]["iteration"] for event in events} == {2, 3, 4}, "the latest three"
    lanes = config.collection.lanes
    for role in ("simulate", "generate"):
        served = [tuple(event["args"]["lanes"]) for event in events if event["cat"] == role]
        assert set(served) - {()} == {(lane,) for lane in range(lanes)}
        assert len(served) >= 3 * lanes * config.decisions
    assert sum(event["cat"] == "train" for event in events) == 3
    assert "<rect" in (directory / "report.html").read_text()


def test_the_summary_has_every_key(whole: tuple[TrainConfig, Path]):
    _, directory = whole
    summary = json.loads((directory / "summary.json").read_text())
    wanted = "base final seconds peak_rss_mb peak_gpu_mb env_steps control_steps_per_second versions seed"
    assert summary.keys() == set(wanted.split())
    assert summary["base"].keys() == summary["final"].keys() == SUITES
    assert all(suite["episodes"] == 4 for suite in summary["final"].values())
    assert summary["seconds"].keys() == {"evaluate_base", "train", "evaluate_final"}
    assert all(seconds > 0 for seconds in summary["seconds"].values())
    assert summary["env_steps"] == sum(row["rollout/control_steps"] for row in read_metrics(directory))
    assert summary["seed"] == 5


def test_evaluations_name_the_weights_that_they_measured(whole: tuple[TrainConfig, Path], checkpoint: Path):
    _, directory = whole
    base, final = (json.loads((directory / "evaluation" / f"{name}.json").read_text()) for name in ("base", "final"))
    assert base["manifest"]["checkpoint"] == checkpoint.name
    assert base["manifest"]["weights_sha256"] != final["manifest"]["weights_sha256"]
    assert base["suites"]["vision"]["settings"].keys() > {"vision/noise"}


def test_films_are_of_the_same_scenarios_before_and_after(whole: tuple[TrainConfig, Path]):
    _, directory = whole
    (entry,) = json.loads((directory / "videos" / "videos.json").read_text())
    assert (entry["suite"], entry["base"]["success"]) == ("train", False), "the first that the base fails at"
    assert entry["scenario"] == f"tabletop/train/evaluation/{entry['place']:06d}"
    with av.open(str(directory / "videos" / entry["pair"])) as container:
        assert container.streams.video[0].frames == max(entry[name]["length"] for name in ("base", "final")) + 1
    assert entry["base"].keys() == entry["final"].keys() == {"file", "success", "length"}
    with av.open(str(directory / "videos" / entry["final"]["file"])) as container:
        # A control step is ten of 5 ms; the first frame is before it.
        assert container.streams.video[0].average_rate == 20
        assert container.streams.video[0].frames == entry["final"]["length"] + 1


def test_training_changes_the_policy_and_not_its_eyes(whole: tuple[TrainConfig, Path], checkpoint: Path):
    _, directory = whole
    before, after = load_policy(checkpoint, device="cpu").state_dict(), final_weights(directory)  # type: ignore[attr-defined]
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"language_model", "proprio_projector"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"evaluation": EvaluationConfig(suites=("train", "nowhere"))}, "nowhere"),
        ({"algorithm": PPOConfig(estimator="treadle.absent:one")}, "algorithm.estimator"),
        ({"algorithm": PPOConfig(loss="treadle.absent:one")}, "algorithm.loss"),
        ({"policy": {"frozen_dimensions": (99,)}}, "policy.frozen_dimensions"),
    ],
)
def test_a_refused_setting_measures_nothing_and_takes_no_name(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: pytest.fail("it measures"))
    config = run_config(tmp_path / "runs", checkpoint)
    if isinstance(fields.get("policy"), dict):
        fields = {"policy": config.policy.model_copy(update=fields["policy"])}
    with pytest.raises(ConfigError, match=said):
        train(config.model_copy(update=fields))
    assert list(tmp_path.iterdir()) == []


def test_another_configuration_does_not_resume_a_run(whole: tuple[TrainConfig, Path]):
    config, _ = whole
    with pytest.raises(OutputError, match=r"decisions is 3 there and 2 here"):
        train(config.model_copy(update={"decisions": 2}))


def test_the_base_is_measured_once(whole: tuple[TrainConfig, Path], monkeypatch: pytest.MonkeyPatch):
    config, directory = whole
    before = (directory / "evaluation" / "base.json").read_bytes()
    asked: list[str] = []
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, name, checkpoint: asked.append(name))
    with open_run(config) as run:
        assert run.version == 4
        run.evaluator.evaluate_base(run.base, run.version)
    assert not asked
    assert (directory / "evaluation" / "base.json").read_bytes() == before


def test_a_base_whose_figures_are_gone_is_not_measured_with_later_weights(
    whole: tuple[TrainConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: pytest.fail("it measures"))
    copy = whole[0].model_copy(update={"output": tmp_path})
    shutil.copytree(whole[1], tmp_path / copy.name)
    (tmp_path / copy.name / "evaluation" / "base.json").unlink()
    with pytest.raises(OutputError, match=r"base.json is missing, and 4 iterations were done.*put the file back"):
        train(copy)


def test_a_run_that_cannot_be_built_closes_its_simulator(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    import fakes

    built: list[fakes.FakeSimulator] = []

    class Stateless(fakes.FakeSimulator):
        def __init__(self, slots: int, *, horizon: int, threads: int) -> None:
            super().__init__(slots, horizon=horizon)
            self.spec = replace(self.spec, state_dim=0, actions=tool_motions(metres=1.0))
            built.append(self)

    monkeypatch.setattr(fakes, "Stateless", Stateless, raising=False)
    simulator = SimulatorConfig(name="fakes:Stateless", slots=2)
    lanes = CollectionConfig(lanes=1)
    with pytest.raises(ConfigError, match=r"critic.kind 'privileged'.*'fakes:Stateless' offers no privileged state"):
        train(run_config(tmp_path, checkpoint, simulator=simulator, collection=lanes))
    assert [simulator.closed for simulator in built] == [True]


@pytest.mark.parametrize(("level", "outputs"), [("action", 4), ("chunk", 1)])
def test_the_value_head_fits_the_reward_level(tmp_path: Path, checkpoint: Path, level: str, outputs: int):
    config = run_config(tmp_path, checkpoint, critic=CriticConfig())
    config = config.model_copy(update={"algorithm": config.algorithm.model_copy(update={"reward_level": level})})
    policy = load_policy(checkpoint, device="cpu")
    build_critic(config, policy, 0, torch.device("cpu"))
    assert policy.value_outputs == outputs
    head = policy.value_head  # type: ignore[attr-defined]
    build_critic(config, policy, 0, torch.device("cpu"))
    assert policy.value_head is head, "a head that fits is kept, as on resuming"  # type: ignore[attr-defined]


def test_rollouts_of_fixed_length_must_hold_whole_episodes(tmp_path: Path, checkpoint: Path):
    config = run_config(tmp_path, checkpoint, algorithm=GRPOConfig(group_size=2), decisions=1)
    with pytest.raises(ConfigError, match=r"decisions 1 with algorithm.partial_reset false.*use decisions=2"):
        train(config)
