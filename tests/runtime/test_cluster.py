"""Runs of several processes: the same numbers in every placement, and what happens when a process dies."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from leftovers import workers_left
from miniature import run_config
from treadle.config.on_policy import PPOConfig
from treadle.config.placement import PlacementConfig, RuntimeConfig
from treadle.config.schema import CollectionConfig, EvaluationConfig, OptimizerConfig, TrainConfig
from treadle.data.step import EpisodeResult
from treadle.errors import MemberLostError, PlacementError
from treadle.evaluation.evaluate import Report
from treadle.policies import load_policy
from treadle.reporting.console import RunConsole
from treadle.reporting.metrics import read_metrics
from treadle.runtime import loop
from treadle.runtime.cluster.engine import Handle
from treadle.runtime.cluster.roles import RemotePlayers, RemoteTrainers
from treadle.runtime.cluster.session import prepare_ray
from treadle.runtime.evaluator import Evaluator
from treadle.runtime.loop import train
from treadle.training.checkpoints import list_checkpoints
from treadle.training.parts import part_path

pytestmark = [pytest.mark.integration]

APART = PlacementConfig(simulate="0", generate="0", train="1")
PAIRS = PlacementConfig(players=2, ranks=2)
SHARDS = PlacementConfig(players=2, ranks=2, sharding="full", offload=True)
LOST = "it is replaced, and plays again from the state before"


def run(output: Path, checkpoint: Path, **fields: Any) -> TrainConfig:
    """A run of four iterations that saves after each, and measures the average of weights after the second."""
    evaluation = EvaluationConfig(suites=("train",), episodes=3, slots=3, videos=1, every=2)
    given = {"save_every": 1, "evaluation": evaluation, "optimizer": OptimizerConfig(average=0.5)}
    return run_config(output, checkpoint, **(given | fields))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The run in one process."""
    return train(run(tmp_path_factory.mktemp("whole"), checkpoint))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None, None, None]:
    """No process outlives its run, and no shared memory."""
    before = set(Path("/dev/shm").iterdir())
    yield
    assert not workers_left()
    assert set(Path("/dev/shm").iterdir()) <= before


def numbers(directory: Path) -> list[dict[str, float]]:
    """The metrics of a run, less wall times and restarts."""
    apart = ("time/", "speed/", "idle/", "rollout/restarts", "seconds")
    return [{k: x for k, x in row.items() if not k.startswith(apart)} for row in read_metrics(directory)]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_policy(directory / "policy", device="cpu").state_dict()


def evaluation(directory: Path, name: str = "final") -> Any:
    return json.loads((directory / "evaluation" / f"{name}.json").read_text())["suites"]


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    left, right = weights(one), weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert evaluation(one) == evaluation(other)


def assert_same_but_for_rounding(one: Path, other: Path) -> None:
    """Sums over ranks have another order. What is played is the same."""
    for row, found in zip(numbers(one), numbers(other), strict=True):
        assert row == pytest.approx(found, rel=1e-3, abs=1e-4)
        assert row["rollout/return"] == found["rollout/return"]
    left, right = weights(one), weights(other)
    for name in left:
        assert torch.allclose(left[name], right[name], atol=2e-4), name


def at_update(monkeypatch: pytest.MonkeyPatch, deeds: dict[int, Callable[[RemoteTrainers], None]]) -> None:
    """Do something once, right before the update of each of these versions."""
    update, left = RemoteTrainers.update, dict(deeds)

    def disturbed(self: RemoteTrainers, rollouts: Any, version: int) -> dict[str, float]:
        left.pop(version, lambda _: None)(self)
        return update(self, rollouts, version)

    monkeypatch.setattr(RemoteTrainers, "update", disturbed)


def kill(handle: Handle) -> None:
    process = psutil.Process(handle.pid)
    process.kill()
    process.wait(10)


def kill_player(trainers: RemoteTrainers) -> None:
    kill(trainers.team.players()[0])


def kill_rank(trainers: RemoteTrainers) -> None:
    kill(trainers.team.ranks()[-1])


def kill_simulator(trainers: RemoteTrainers) -> None:
    (worker, *_) = [
        child
        for child in psutil.Process(trainers.team.players()[0].pid).children()
        if "treadle.workers.worker" in child.cmdline()
    ]
    worker.kill()


def test_a_player_and_a_rank_of_their_own_make_the_same_run(
    tmp_path: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    priorities: list[int] = []
    handlers: list[Any] = []

    def look(trainers: RemoteTrainers) -> None:
        members = [*trainers.team.players(), *trainers.team.ranks()]
        priorities.extend(os.getpriority(os.PRIO_PROCESS, handle.pid) for handle in members)

    at_update(monkeypatch, {1: look})
    evaluate, play, rests = Evaluator.evaluate, RemotePlayers.evaluate, list[list[int]]()

    def measure(*arguments: Any) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        evaluate(*arguments)

    def interrupt_at_two(_: RunConsole, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    def measure_the_rest(players: RemotePlayers, suite: str, report: Report, played: Collection[int]) -> None:
        found: dict[int, EpisodeResult] = {}

        def note(ended: Mapping[int, EpisodeResult], total: int) -> None:
            found.update(ended)
            report(ended, total)

        play(players, suite, note, played)
        rests.append(sorted(found))

    monkeypatch.setattr(Evaluator, "evaluate", measure)
    with monkeypatch.context() as patch:
        patch.setattr(RunConsole, "progress", interrupt_at_two)
        with pytest.raises(KeyboardInterrupt):
            train(run(tmp_path, checkpoint))
    with monkeypatch.context() as patch:
        patch.setattr(RemotePlayers, "evaluate", measure_the_rest)
        assert_same_run(whole, train(run(tmp_path, checkpoint, placement=APART)))
    assert rests == [[2], [0, 1, 2], [0, 1, 2]], "one process had measured two episodes of the base"
    assert evaluation(whole, "base") == evaluation(tmp_path / "run", "base")
    assert priorities == [os.getpriority(os.PRIO_PROCESS, 0)] * 2, "they give way to nobody"
    assert [handler.__module__ for handler in handlers] == [loop.__name__] * 3, "Ray leaves SIGTERM to the run"


def test_two_players_and_two_ranks_make_the_same_run_which_goes_on_in_one_process(
    tmp_path: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        at_update(patch, {1: lambda _: os.kill(os.getpid(), signal.SIGINT)})
        with pytest.raises(KeyboardInterrupt):
            train(run(tmp_path, checkpoint, placement=PAIRS))
    directory = tmp_path / "run"
    assert [path.name for path in list_checkpoints(directory / "checkpoints")][-1] == "iteration-000002"
    assert_same_but_for_rounding(whole, train(run(tmp_path, checkpoint)))
    assert json.loads((directory / "config.json").read_text())["placement"]["players"] == 0


def test_ranks_that_hold_a_part_of_the_weights_each_make_the_same_run(tmp_path: Path, checkpoint: Path, whole: Path):
    config = run(tmp_path, checkpoint, placement=SHARDS, save_in_background=True)
    assert_same_but_for_rounding(whole, train(config))
    saved = tmp_path / "run" / "checkpoints" / "iteration-000004"
    assert all(part_path(saved, rank, 2).exists() for rank in range(2))


def test_what_dies_is_replaced_and_the_run_is_the_same(
    tmp_path: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    collection = CollectionConfig(kind="processes")
    at_update(monkeypatch, {1: kill_simulator, 2: kill_player, 3: kill_rank})
    directory = train(run(tmp_path, checkpoint, placement=APART, collection=collection))
    assert_same_run(whole, directory)
    log = (directory / "run.log").read_text()
    assert "player 0 has died" in log
    assert LOST in log
    assert "rank 0 has died" in log
    assert "all members start anew, and go on after iteration 3" in log
    assert sum(row["rollout/restarts"] for row in read_metrics(directory)) == 1


@pytest.mark.parametrize("overlap", [pytest.param("stream", marks=pytest.mark.full), "async"])
def test_playing_beside_training_is_the_same_in_threads_and_in_processes(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
):
    """Also when a player dies while the trainer works, and a rank while the player does."""
    fields: dict[str, Any] = {"overlap": overlap, "algorithm": PPOConfig(minibatch=8, rounds=2)}
    threads = train(run(tmp_path / "threads", checkpoint, **fields))
    assert_same_run(threads, train(run(tmp_path / "processes", checkpoint, placement=APART, **fields)))
    at_update(monkeypatch, {1: kill_player, 2: kill_rank})
    disturbed = train(run(tmp_path / "disturbed", checkpoint, placement=APART, **fields))
    assert_same_run(threads, disturbed)
    assert "all members start anew, and go on after iteration 2" in (disturbed / "run.log").read_text()


def test_one_process_on_a_cluster_that_is_there_makes_the_same_run(tmp_path: Path, checkpoint: Path, whole: Path):
    prepare_ray()
    cluster = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        directory = train(run(tmp_path, checkpoint, runtime=RuntimeConfig(address=cluster.address)))
    finally:
        cluster.shutdown()
    assert_same_run(whole, directory)


@pytest.mark.full
def test_three_losses_in_a_row_end_the_run(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    def disturbed(self: RemoteTrainers, rollouts: Any, version: int) -> dict[str, float]:
        kill_rank(self)
        return {}

    monkeypatch.setattr(RemoteTrainers, "update", disturbed)
    with pytest.raises(MemberLostError, match=r"rank 0 has died, .*\(3 losses with no iteration in between\)"):
        train(run(tmp_path, checkpoint, placement=APART))


def test_a_run_goes_on_when_a_machine_is_gone(
    tmp_path: Path, checkpoint: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two raylets stand for two machines: a player on each, and training on the first."""
    # Ray reads settings when it is first imported.
    prepare_ray()
    cluster = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    members: list[int] = []

    def end_machine(trainers: RemoteTrainers) -> None:
        players = trainers.team.players()
        assert [handle.place.node for handle in players] == [0, 1]
        members.extend(handle.pid for handle in players)
        second.kill_raylet()

    try:
        at_update(monkeypatch, {1: end_machine})
        placement = PlacementConfig(simulate="all", generate="all", train="node0:1")
        runtime = RuntimeConfig(address=cluster.address)
        directory = train(run(tmp_path, checkpoint, placement=placement, runtime=runtime))
    finally:
        cluster.shutdown()
    assert_same_but_for_rounding(whole, directory)
    log = (directory / "run.log").read_text()
    assert "WARNING player 1 " in log
    assert "all members start anew, and go on after iteration 1" in log
    assert not any(psutil.pid_exists(pid) for pid in members)


@pytest.mark.full
def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path, checkpoint: Path):
    config = run(tmp_path, checkpoint, iterations=100, placement=PAIRS)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    folders = set(Path(tempfile.gettempdir()).glob("treadle-*"))
    command = [sys.executable, "-c", "from treadle.cli import main; main()", "train", str(tmp_path / "config.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("iteration 1/100" in line for line in process.stdout)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 5
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, alive
    assert set(Path(tempfile.gettempdir()).glob("treadle-*")) <= folders


def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path, checkpoint: Path):
    with pytest.raises(PlacementError, match=r"runtime.address: cannot join the Ray cluster '127.0.0.1:1' .*refused"):
        train(run(tmp_path, checkpoint, runtime=RuntimeConfig(address="127.0.0.1:1")))
    assert not (tmp_path / "run").exists()
