"""Playing beside training: what is played and learnt depends on the settings alone, never on who was faster."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miniature import run_config
from treadle.config.algorithm import AlgorithmConfig
from treadle.config.on_policy import GRPOConfig, PPOConfig
from treadle.config.schema import CriticConfig, TrainConfig
from treadle.errors import ConfigError, SimulatorError, VersionError
from treadle.policies import load_policy
from treadle.reporting.metrics import read_metrics
from treadle.runtime.loop import train
from treadle.runtime.overlap import OverlappedPlayers
from treadle.runtime.placement import Machines, describe, place
from treadle.runtime.player import Player, PlayReport
from treadle.runtime.trainer import Trainer, check_versions
from treadle.training.on_policy.stream import GradientStream
from whole_runs import assert_resumes, assert_same_run, final_weights, interrupt_at, numbers


class Paper:
    """Players on paper: a rollout is what was acted with, and how many came before."""

    def __init__(self, seconds: Callable[[int], float] = lambda _: 0.0) -> None:
        self.version, self.count, self.seconds = 0, 0, seconds
        self.failing: int | None = None

    def receive(self, weights: Any) -> None:
        self.version = weights.version

    def collect_one(self) -> tuple[int, int]:
        time.sleep(self.seconds(self.count))
        if self.count == self.failing:
            raise SimulatorError("it broke")
        self.count += 1
        return self.version, self.count - 1

    def take_report(self) -> PlayReport:
        return PlayReport(1, [], 1, {}, [])

    def state_dict(self) -> dict[str, Any]:
        return {"count": [self.count]}


def weights(version: int) -> Any:
    return SimpleNamespace(version=version)


def play(config: TrainConfig, players: Paper, train: Callable[[int], None] = lambda _: None, refills: int = 0) -> Any:
    """What each update would learn from."""
    overlapped = OverlappedPlayers(players, config)  # type: ignore[arg-type]
    overlapped.begin(0, [weights(0)])
    wanted = config.needs.rollouts + refills
    learnt: list[list[tuple[int, int]]] = []
    for version in range(config.iterations):
        learnt.append(overlapped.collect(lambda rollouts: len(rollouts) < wanted))
        assert overlapped.state_dict() == {"count": [(version + 1) * wanted]}
        train(version)
        overlapped.receive(weights(version + 1))
        assert overlapped.take_report().rollouts == wanted
    overlapped.close()
    return learnt


def settings(overlap: str, **fields: Any) -> TrainConfig:
    algorithm = fields.pop("algorithm", PPOConfig())
    critic = CriticConfig(warmup_iterations=0)
    return TrainConfig(overlap=overlap, algorithm=algorithm, critic=critic, **({"iterations": 5} | fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "versions"),
    [
        ({"overlap": "stream"}, [0, 1, 2, 3, 4]),
        ({"overlap": "async"}, [0, 0, 1, 2, 3]),
        ({"overlap": "async", "max_staleness": 3}, [0, 0, 0, 0, 1]),
    ],
)
@pytest.mark.parametrize("slow", ["players", "trainer", "both", "nobody"])
def test_every_update_learns_from_the_version_that_the_settings_say(
    fields: dict[str, Any], versions: list[int], slow: str
):
    config = settings(**fields, algorithm=PPOConfig(rounds=2))
    delays = torch.rand(10, generator=torch.Generator().manual_seed(0)) * 0.02
    players = Paper(lambda count: float(delays[count]) if slow in ("players", "both") else 0.0)
    learnt = play(config, players, lambda version: time.sleep(0.02) if slow in ("trainer", "both") else None)
    # Nothing is lost, doubled, played in another order, or played for nobody.
    assert [number for update in learnt for _, number in update] == list(range(10))
    assert [[version for version, _ in update] for update in learnt] == [[version] * 2 for version in versions]
    assert players.count == 10


def test_players_go_on_while_the_trainer_works_and_wait_where_it_is_too_far_behind():
    config = settings("async", max_staleness=2, iterations=9)
    players, counts = Paper(), []

    def work(version: int) -> None:
        deadline = time.monotonic() + 5
        # Update k has been given its rollouts; those of two more can be played before it ends.
        while players.count < min(version + 3, 9) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        counts.append(players.count)

    play(config, players, work)
    assert counts == [3, 4, 5, 6, 7, 8, 9, 9, 9]


def test_refills_come_from_the_version_of_their_update():
    algorithm = GRPOConfig(group_size=2, rounds=2, filter={"refills": 2})  # type: ignore[arg-type]
    config = settings("async", max_staleness=4, algorithm=algorithm)
    assert config.staleness == 1
    learnt = play(config, Paper(), refills=1)
    assert [version for update in learnt for version, _ in update] == [0] * 6 + [1] * 3 + [2] * 3 + [3] * 3
    with pytest.raises(ConfigError, match=r"an update wants more than 4 rollouts, .* takes 2, and 2 refills at most"):
        play(config, Paper(), refills=3)
    with pytest.raises(ConfigError, match=r"an update takes 1 rollouts, and DataNeeds\.rollouts says 2"):
        play(config, Paper(), refills=-1)


def test_what_breaks_a_rollout_reaches_the_loop_and_nothing_is_played_after_it():
    players = Paper()
    players.failing = 2
    with pytest.raises(SimulatorError, match="it broke"):
        play(settings("async", algorithm=PPOConfig(rounds=2)), players)
    assert players.count == 2


def test_a_run_goes_on_after_a_halt_from_the_weights_that_it_was_saved_with():
    config = settings("async", max_staleness=2)
    straight = play(config, Paper())
    players = Paper()
    overlapped = OverlappedPlayers(players, config)  # type: ignore[arg-type]
    overlapped.begin(0, [weights(0)])
    for version in range(3):
        overlapped.collect(lambda rollouts: not rollouts)
        overlapped.receive(weights(version + 1))
    saved, published = overlapped.state_dict(), overlapped.published
    assert [w.version for w in published] == [1, 2]
    overlapped.halt()
    # New members stand where the state says.
    players.count = saved["count"][0]
    overlapped.begin(3, [*published, weights(3)])
    went_on = []
    for version in range(3, 5):
        went_on.append(overlapped.collect(lambda rollouts: not rollouts))
        overlapped.receive(weights(version + 1))
    overlapped.close()
    assert went_on == straight[3:]


def test_settings_that_nothing_reads_are_refused():
    with pytest.raises(ValueError, match="max_staleness 2 with overlap 'stream'"):
        TrainConfig(overlap="stream", max_staleness=2)
    assert TrainConfig(overlap="async", max_staleness=2).staleness == 2
    assert TrainConfig(overlap="stream").staleness == TrainConfig().staleness == 0


def test_decisions_of_versions_that_may_not_be_are_refused():
    def rollout(*versions: int) -> Any:
        return SimpleNamespace(
            versions=torch.tensor([versions]), valid=torch.ones(1, len(versions), 1, dtype=torch.bool)
        )

    check_versions([rollout(3, 4, 5)], 5, staleness=2)
    with pytest.raises(VersionError, match=r"version 5 .* of version 2, 5, where 3 to 5 may be"):
        check_versions([rollout(5, 2)], 5, staleness=2)
    with pytest.raises(VersionError, match="where 3 to 5 may be"):
        check_versions([rollout(6)], 5, staleness=2)
    with pytest.raises(VersionError, match="where 5 alone may be"):
        check_versions([rollout(4)], 5)


GRPO = GRPOConfig(group_size=2, rounds=2, filter={"low": 0.0, "high": 1.0}, estimator="rloo_alike", minibatch=8)  # type: ignore[arg-type]


def delay(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, seconds: float) -> None:
    whole = getattr(kind, name)

    def late(self: Any, *arguments: Any) -> Any:
        time.sleep(seconds)
        return whole(self, *arguments)

    monkeypatch.setattr(kind, name, late)


@pytest.mark.integration
@pytest.mark.parametrize("algorithm", [PPOConfig(minibatch=8, rounds=2), GRPO], ids=["ppo", "grpo"])
@pytest.mark.parametrize("overlap", ["stream", "async"])
def test_delays_change_nothing(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, algorithm: AlgorithmConfig, overlap: str
):
    fields: dict[str, Any] = {"algorithm": algorithm, "overlap": overlap}
    one = train(run_config(tmp_path / "one", checkpoint, **fields))
    with monkeypatch.context() as patch:
        delay(patch, Player, "collect_one", 0.05)
        assert_same_run(one, train(run_config(tmp_path / "slow players", checkpoint, **fields)))
    with monkeypatch.context() as patch:
        delay(patch, Trainer, "update", 0.2)
        assert_same_run(one, train(run_config(tmp_path / "slow trainer", checkpoint, **fields)))
    staleness = [row["update/staleness"] for row in read_metrics(one)]
    assert staleness == ([0, 1, 1, 1] if overlap == "async" else [0] * 4)
    assert all({"idle/collect", "idle/train"} <= row.keys() for row in read_metrics(one))


@pytest.mark.integration
@pytest.mark.parametrize("algorithm", [PPOConfig(minibatch=8, rounds=2), GRPO], ids=["ppo", "grpo"])
def test_streaming_changes_nothing(tmp_path: Path, checkpoint: Path, algorithm: AlgorithmConfig):
    none = train(run_config(tmp_path / "none", checkpoint, algorithm=algorithm))
    stream = train(run_config(tmp_path / "stream", checkpoint, algorithm=algorithm, overlap="stream"))
    assert_same_run(none, stream)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["value_head", "privileged"])
def test_players_have_weights_of_their_own(tmp_path: Path, checkpoint: Path, kind: str):
    """Against the same schedule of versions without any thread."""
    critic = CriticConfig(kind=kind, width=16, warmup_iterations=0)  # type: ignore[arg-type]
    config = run_config(tmp_path, checkpoint, critic=critic, overlap="async")
    overlapped = train(config)
    rows = read_metrics(overlapped)
    assert [row["update/staleness"] for row in rows] == [0, 1, 1, 1]
    assert rows[1]["update/stale_weight"] != 1.0


@pytest.mark.integration
@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("algorithm", [PPOConfig(minibatch=8), GRPO], ids=["ppo", "grpo"])
def test_a_stopped_run_goes_on_exactly(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, algorithm: AlgorithmConfig, staleness: int
):
    assert_resumes(tmp_path, checkpoint, monkeypatch, algorithm=algorithm, overlap="async", max_staleness=staleness)


@pytest.mark.integration
def test_stopping_at_once_ends_the_thread(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    def stop() -> None:
        raise KeyboardInterrupt

    interrupt_at(monkeypatch, 1, stop)
    with pytest.raises(KeyboardInterrupt):
        train(run_config(tmp_path, checkpoint, overlap="async"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("players") and thread.is_alive()]


def stream_settings(name: str) -> dict[str, Any]:
    """Settings under which an update begins with its first rollout."""
    common: dict[str, Any] = {"rounds": 3, "minibatch": 1000, "micro_batch": 5, "epochs": 1}
    common["normalize_advantages"] = False
    if name == "ppo":
        critic = CriticConfig(kind="privileged", width=16, warmup_iterations=1)
        return {"algorithm": PPOConfig(**common, reference={"coefficient": 0.1}), "critic": critic}  # type: ignore[arg-type]
    filtered = {"low": 0.0, "high": 1.0, "refills": 1}
    return {"algorithm": GRPOConfig(**common, group_size=2, filter=filtered, trajectory_weights=name == "grpo")}  # type: ignore[arg-type]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["ppo", "grpo", "grpo-actions"])
def test_a_gradient_that_comes_in_parts_is_the_whole_gradient(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    fields = stream_settings(name) | {"iterations": 5}
    none = train(run_config(tmp_path / "none", checkpoint, **fields))
    passes: list[int] = []
    add = GradientStream.add

    def noted(self: GradientStream, rollouts: Any, iteration: int) -> None:
        add(self, rollouts, iteration)
        passes.append(len(rollouts))

    monkeypatch.setattr(GradientStream, "add", noted)
    stream = train(run_config(tmp_path / "stream", checkpoint, overlap="stream", **fields))
    assert set(passes) >= {1, 2, 3}
    for row, found in zip(numbers(none), numbers(stream), strict=True):
        # It counts single weights, which rounding moves or not.
        unmoved = [each.pop("update/unmoved_share", 0.0) for each in (row, found)]
        assert unmoved[0] == pytest.approx(unmoved[1], abs=1e-3)
        assert row == pytest.approx(found, rel=1e-3, abs=1e-5)
    assert any("update/signal_share" in row for row in numbers(stream))
    moved = final_weights(none)
    for name_, weight in final_weights(stream).items():
        assert torch.allclose(moved[name_], weight, atol=1e-5), name_
    first = load_policy(checkpoint, device="cpu").state_dict()
    assert max(float((first[name_] - weight).abs().max()) for name_, weight in moved.items()) > 2e-4


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"rounds": 1}, "rounds 1 is one rollout alone"),
        ({"minibatch": 512}, "minibatch 512 and epochs 1 make up to 10 steps"),
        ({"epochs": 2}, "epochs 2 make up to 2 steps"),
        ({"normalize_advantages": True}, "takes the moments of the whole batch"),
        ({"chunk_share": 0.5}, "draws from the whole batch"),
        ({"loss": "a:b"}, "another package's"),
    ],
)
def test_a_run_says_why_its_updates_wait(changed: dict[str, Any], reason: str | None):
    fitting = {"rounds": 2, "minibatch": 10_000, "epochs": 1, "normalize_advantages": False}
    algorithm = PPOConfig(**(fitting | changed))
    config = TrainConfig(algorithm=algorithm, critic=CriticConfig(kind="privileged"), overlap="stream")
    found = algorithm.not_streamed(config)
    assert found is None if reason is None else reason in str(found)
    machines = Machines("cpu", ((0, 1),))
    assert (f"because {found}" if found else "are propagated back while") in describe(place(config, machines), config)[
        -1
    ]
    head = config.model_copy(update={"critic": CriticConfig()})
    assert algorithm.not_streamed(head) is not None
