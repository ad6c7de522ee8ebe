"""Whole runs on the real tabletop that are resumed or extended end as those that were left alone."""

import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from miniature import run_config
from treadle.config.on_policy import GRPOConfig
from treadle.config.schema import (
    CollectionConfig,
    CriticConfig,
    OptimizerConfig,
    TrainConfig,
)
from treadle.errors import CheckpointError, ConfigError
from treadle.reporting.metrics import read_metrics
from treadle.runtime.build import open_run
from treadle.runtime.loop import train
from treadle.training.checkpoints import list_checkpoints
from treadle.training.checksums import write_checksums
from treadle.workers.crew import Crew
from whole_runs import assert_resumes, assert_same_run, final_weights, interrupt_at, numbers

pytestmark = pytest.mark.integration


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


def test_lanes_in_processes_resume_bit_for_bit(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Three lanes of 2, 1 and 1 slots on two processes."""
    fields: dict[str, Any] = {
        "collection": CollectionConfig(lanes=3, workers=2, kind="processes", trace_iterations=0),
        "iterations": 3,
    }
    one = assert_resumes(tmp_path, checkpoint, monkeypatch, **fields)
    assert not (one / "trace.json").exists()


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> TrainConfig:
    """A run of two of its four iterations, both saved."""
    lanes = CollectionConfig(lanes=2)
    config = run_config(tmp_path_factory.mktemp("two"), checkpoint, save_every=1, collection=lanes)
    with open_run(config) as run:
        run.evaluator.evaluate_base(run.base, run.version)
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
