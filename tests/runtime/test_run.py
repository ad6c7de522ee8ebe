"""Whole runs on the real tabletop: what they write, and that stopping and resuming changes nothing."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
import torch

from miniature import run_config
from treadle.config.on_policy import GRPOConfig, PPOConfig
from treadle.config.schema import (
    CollectionConfig,
    CriticConfig,
    EvaluationConfig,
    OptimizerConfig,
    SimulatorConfig,
    TrainConfig,
)
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.errors import CheckpointError, ConfigError, DivergenceError, ExhaustedError, OutputError, Terminated
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.runtime import recorder
from treadle.runtime.build import open_run
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.loop import train
from treadle.runtime.member import build_critic
from treadle.runtime.player import PlayReport
from treadle.runtime.recorder import summarize
from treadle.simulators.protocol import tool_motions
from treadle.training.checkpoints import list_checkpoints
from treadle.training.checksums import write_checksums
from treadle.training.on_policy.ppo import PPO
from treadle.workers.crew import Crew
from whole_runs import assert_resumes, assert_same_run, final_weights, interrupt_at, numbers, press_ctrl_c

pytestmark = pytest.mark.integration

SUITES = {"in_distribution", "vision"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[TrainConfig, Path]:
    """Four iterations in one go, with evaluation and a video."""
    evaluation = EvaluationConfig(suites=("train", "vision"), episodes=4, slots=3, videos=1)
    lanes = CollectionConfig(lanes=2)
    config = run_config(tmp_path_factory.mktemp("whole"), checkpoint, evaluation=evaluation, collection=lanes)
    return config, train(config)


def test_a_run_whose_simulator_is_killed_goes_on_to_the_same_weights(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    """While the policy is updated, so that its episodes are in the middle; the log and the metrics tell."""
    fields: dict[str, Any] = {"collection": CollectionConfig(lanes=2, workers=2, kind="processes")}
    one = train(run_config(tmp_path / "one", checkpoint, **fields))
    killed: list[psutil.Process] = []
    crews: list[Crew] = []
    open_crew = Crew.__init__

    def noted(self: Crew, *arguments: Any) -> None:
        open_crew(self, *arguments)
        crews.append(self)

    def kill() -> None:
        killed.append(psutil.Process(crews[-1].pids[0]))
        killed[0].kill()
        killed[0].wait(10)

    monkeypatch.setattr(Crew, "__init__", noted)
    interrupt_at(monkeypatch, 1, kill)
    other = train(run_config(tmp_path / "other", checkpoint, **fields))
    assert len(killed) == 1
    assert [row["rollout/restarts"] for row in read_metrics(one)] == [0, 0, 0, 0]
    assert [row["rollout/restarts"] for row in read_metrics(other)] == [0, 0, 1, 0]
    for row in (rows := numbers(other)):
        row["rollout/restarts"] = 0.0
    assert rows == numbers(one)
    left, right = final_weights(one), final_weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)
    log = (other / "run.log").read_text()
    assert "Its slots restart with their scenarios" in log
    assert "tabletop/train/" in log


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


def test_lanes_in_processes_resume_bit_for_bit(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Three lanes of 2, 1 and 1 slots on two processes."""
    fields: dict[str, Any] = {
        "collection": CollectionConfig(lanes=3, workers=2, kind="processes", trace_iterations=0),
        "iterations": 3,
    }
    one = assert_resumes(tmp_path, checkpoint, monkeypatch, **fields)
    assert not (one / "trace.json").exists()


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


def test_ctrl_c_saves_and_the_same_command_goes_on(
    whole: tuple[TrainConfig, Path], tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    config = run_config(tmp_path, checkpoint, collection=CollectionConfig(lanes=2))
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert signal.getsignal(signal.SIGINT) is handler
    directory = tmp_path / "run"
    assert [path.name for path in list_checkpoints(directory / "checkpoints")] == ["iteration-000002"]
    assert len(read_metrics(directory)) == 2
    assert not (directory / "summary.json").exists()
    train(config)
    assert_same_run(directory, whole[1])
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["env_steps"] == sum(row["rollout/control_steps"] for row in read_metrics(directory))


@pytest.mark.parametrize(("crash", "kept"), [(0, 0), (1, 0), (3, 2)])
def test_a_crash_costs_what_was_not_saved_and_no_more(
    whole: tuple[TrainConfig, Path],
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: int,
    kept: int,
):
    config = run_config(tmp_path, checkpoint, save_every=2, collection=CollectionConfig(lanes=2))
    with monkeypatch.context() as patch:

        def fail() -> None:
            raise RuntimeError("power cut")

        interrupt_at(patch, crash, fail)
        with pytest.raises(RuntimeError, match=r"power cut"):
            train(config)
    directory = tmp_path / "run"
    assert len(list_checkpoints(directory / "checkpoints")) == bool(kept)
    train(config)
    assert [row["iteration"] for row in read_metrics(directory)] == [1, 2, 3, 4]
    assert_same_run(directory, whole[1])


def test_what_is_not_finite_stops_the_run_and_leaves_its_last_checkpoint(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    update = PPO.update

    def poisoned(self: PPO, rollouts: Any, iteration: int) -> dict[str, float]:
        if iteration == 2:
            rollouts[0].reward[0, 0, 0] = torch.nan
        return update(self, rollouts, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", poisoned)
        with pytest.raises(DivergenceError, match=r"rollout.reward is nan: .* resume with the same command"):
            train(run_config(tmp_path, checkpoint, save_every=1, iterations=3))
    saved = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert len(saved) > 0
    assert [row["iteration"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    weights = load_policy(saved[-1] / "policy").state_dict()  # type: ignore[attr-defined]
    assert all(bool(x.isfinite().all()) for x in weights.values())


def test_the_second_ctrl_c_stops_at_once(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    def twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    interrupt_at(monkeypatch, 1, twice)
    with pytest.raises(KeyboardInterrupt):
        train(run_config(tmp_path, checkpoint))
    assert len(read_metrics(tmp_path / "run")) == 1
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")


def test_sigterm_saves_and_ends(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    interrupt_at(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated):
        train(run_config(tmp_path, checkpoint))
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["iteration-000002"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert not (tmp_path / "run" / ".lock").exists()


def test_sigterm_does_not_wait_longer_than_its_budget(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(recorder, "BUDGET", 0.2)

    def end_and_hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    interrupt_at(monkeypatch, 1, end_and_hang)
    with pytest.raises(Terminated):
        train(run_config(tmp_path, checkpoint, save_every=1))
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["iteration-000001"]
    said = capsys.readouterr().out
    assert "SIGTERM: stopping after this iteration, or in 0.2 s at the latest" in said
    assert "the iteration took more than 0.2 s; the last checkpoint is whole" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_stops_the_evaluation_of_the_base_is_said(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: os.kill(os.getpid(), number) or time.sleep(60))
    # A shell lets what it runs in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(run_config(tmp_path, checkpoint))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped while the base was measured; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_what_to_lower(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail() -> None:
        raise error

    interrupt_at(monkeypatch, 0, fail)
    with pytest.raises(ExhaustedError, match=r"out of memory while training: .*algorithm.micro_batch=2 \(now 5\)"):
        train(run_config(tmp_path, checkpoint))


def test_a_full_disk_keeps_the_earlier_checkpoint_and_its_lines(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    saves: list[Path] = []

    def fill(state: Any, path: Path, save: Any = torch.save) -> None:
        saves.append(path)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OutputError, match=r"iteration-000002: cannot save the checkpoint .*No space left"):
        train(run_config(tmp_path, checkpoint, save_every=1))
    directory = tmp_path / "run"
    (kept,) = (directory / "checkpoints").iterdir()
    assert kept.name == "iteration-000001"
    (kept / "trainer.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"iteration-000001.trainer\.pt: 7 bytes; .*not whole, and none before"):
        train(run_config(tmp_path, checkpoint, save_every=1))


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> TrainConfig:
    """A run of two of its four iterations, both saved."""
    lanes = CollectionConfig(lanes=2)
    config = run_config(tmp_path_factory.mktemp("two"), checkpoint, save_every=1, collection=lanes)
    with open_run(config) as run:
        for _ in range(2):
            rollouts = run.player.collect(run.trainer.wants_more)
            metrics = run.trainer.update(rollouts, run.version)
            run.player.receive(run.trainer.publish(run.version + 1))
            run.version += 1
            run.recorder.write(run.version, run.player.take_report(), metrics)
            run.save()
    return config


def broken(key: str, value: Any) -> Any:
    """What puts a value, or the removal of the key, into a saved state."""

    def change(state: dict[str, Any]) -> None:
        inner: Any = state
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        for part in path:
            inner = inner[part]
        if value is None:
            del inner[last]
        else:
            inner[last] = value

    return pytest.param(change, id=f"{key}={value!r}"[:60])


@pytest.mark.parametrize(
    "change",
    [
        broken("iteration", -1),
        broken("iteration", "two"),
        broken("iteration", 3),
        broken("player", None),
        broken("player.episodes", 5),
        broken("player.episodes", []),
        broken("player.episodes.0.actions", [[1.0]]),
        broken("player.episodes.0.actions", [[1.0] * 7] * 99),
        broken("player.episodes.0.scenario.index", -4),
        broken("player.episodes.0.scenario.split", "tests"),
        broken("player.episodes.0.key", -1),
        broken("player.upcoming.0", [("train", "train", "x", 3)]),
        broken("player.source", {}),
        broken("player.source.given", [1]),
        broken("recorder", None),
        broken("recorder.elapsed", "long"),
        broken("recorder.control_steps", float("nan")),
        broken("algorithm", []),
        broken("algorithm.optimizer", None),
        broken("algorithm.optimizer.state", 3),
        broken("algorithm.optimizer.state.0", {"step": 1}),
        broken("algorithm.optimizer.state.0.exp_avg", torch.zeros(3)),
        broken("algorithm.optimizer.state.0.exp_avg", "text"),
        broken("algorithm.optimizer.param_groups.0.params", [0]),
        broken("algorithm.critic", {"x": torch.zeros(2)}),
        broken("algorithm.reference_coefficient", float("nan")),
        broken("average.weight", "heavy"),
        broken("average", {"weight": 1.0, "average": [torch.zeros(2)]}),
        broken("average", None),
    ],
)
def test_a_wrong_state_in_a_whole_file_is_one_line(two_iterations: TrainConfig, tmp_path: Path, change: Any):
    shutil.copytree(two_iterations.output, tmp_path, dirs_exist_ok=True)
    latest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    state = torch.load(latest / "trainer.pt", weights_only=True)
    change(state)
    torch.save(state, latest / "trainer.pt")
    write_checksums(latest, {})
    with (
        pytest.raises(CheckpointError, match=rf"^{latest}/trainer.pt: \S") as caught,
        open_run(two_iterations.model_copy(update={"output": tmp_path})),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_costs_the_newest_checkpoint_alone(
    two_iterations: TrainConfig, whole: tuple[TrainConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The run goes on from the one before, and ends as one that was left alone."""
    shutil.copytree(two_iterations.output, tmp_path, dirs_exist_ok=True)
    latest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    weights = max((latest / "policy").glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[-100] ^= 4
    weights.write_bytes(content)
    directory = train(two_iterations.model_copy(update={"output": tmp_path}))
    assert [row["iteration"] for row in read_metrics(directory)] == [1, 2, 3, 4]
    assert_same_run(directory, whole[1])
    said = capsys.readouterr().out
    assert f"warning: {weights}: its content is not what was written" in said
    assert "going on from iteration-000001" in said


def test_an_extended_run_is_that_of_the_larger_number(tmp_path: Path, checkpoint: Path):
    """A finished run of two iterations becomes one of three, with other workers."""
    fields: dict[str, Any] = {"optimizer": OptimizerConfig(average=0.5)}
    one = train(run_config(tmp_path / "one", checkpoint, iterations=3, **fields))
    train(run_config(tmp_path / "other", checkpoint, iterations=2, **fields))
    workers = CollectionConfig(workers=2)
    other = train(run_config(tmp_path / "other", checkpoint, iterations=3, save_every=2, collection=workers, **fields))
    assert_same_run(one, other)
    with pytest.raises(ConfigError, match=r"iterations: found 2; this run has had 3, which no setting undoes"):
        train(run_config(tmp_path / "other", checkpoint, iterations=2, **fields))


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
        run.evaluator.evaluate_once("base", run.base)
    assert not asked
    assert (directory / "evaluation" / "base.json").read_bytes() == before


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


def test_a_value_head_run_resumes_exactly(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    fields: dict[str, Any] = {
        "critic": CriticConfig(warmup_iterations=1),
        "optimizer": OptimizerConfig(average=0.5),
        "iterations": 3,
    }
    assert_resumes(tmp_path, checkpoint, monkeypatch, **fields)


GRPO = GRPOConfig(group_size=2, minibatch=4, filter={"low": 0, "high": 1, "refills": 1})  # type: ignore[arg-type]


def test_a_grpo_run_resumes_exactly(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    reference = {"coefficient": 0.1, "target": 0.01}
    algorithm = GRPO.model_validate(GRPO.model_dump() | {"reference": reference})
    fields: dict[str, Any] = {"algorithm": algorithm, "iterations": 3, "decisions": 2}
    one = assert_resumes(tmp_path, checkpoint, monkeypatch, **fields)
    rows = read_metrics(one)
    assert all(row["rollout/episodes"] == 4 * row.get("rollout/rounds", 1) for row in rows)
    assert all("update/filtered_group_share" in row and "critic/loss" not in row for row in rows)


def test_rollouts_of_fixed_length_must_hold_whole_episodes(tmp_path: Path, checkpoint: Path):
    config = run_config(tmp_path, checkpoint, algorithm=GRPO, decisions=1)
    with pytest.raises(ConfigError, match=r"decisions 1 with algorithm.partial_reset false.*use decisions=2"):
        train(config)


def test_summarize_averages_over_episodes():
    import numpy as np

    from treadle.data.rollout import Rollout

    what = Scenario("fake", "train", "task", "train", 0, "do")
    episodes = [EpisodeResult(what, True, False, 2.0, 3), EpisodeResult(what, False, False, 1.0, 6)]
    x = torch.zeros(1, 1)
    rollout = Rollout(
        *(x, x, x, x, x, x, x, x, x, torch.tensor([[[True, True, False]]]), x, x[0], x, x, x),  # type: ignore[arg-type]
        scenarios=np.full((1, 1), what),
        episodes=episodes,
        seconds={"simulate": 0.5},
    )
    assert summarize(PlayReport.of([rollout], [])) == {
        "rollout/episodes": 2,
        "rollout/control_steps": 2,
        "time/simulate": 0.5,
        "rollout/success": 0.5,
        "rollout/return": 1.5,
        "rollout/length": 4.5,
    }
    rollout.episodes = []
    assert "rollout/success" not in summarize(PlayReport.of([rollout], []))
