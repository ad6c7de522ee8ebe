"""A policy's rollouts, written as a data set."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from miniature import IMAGE
from treadle.cli import app
from treadle.config.dataset import RecordConfig
from treadle.config.loading import read_config
from treadle.data.demonstrations import read_demonstrations
from treadle.errors import ConfigError, OutputError
from treadle.evaluation.play import play
from treadle.policies import load_policy
from treadle.policies.sampling import Sampling
from treadle.rollout.actor import Actor
from treadle.rollout.sources import ScenarioList
from treadle.simulators.factory import SimulatorFactory
from treadle.supervised.recording import Choice, record_rollouts
from treadle.workers.crew import Crew, CrewPlan
from treadle.workers.lanes import Lanes
from treadle.workers.messages import Session

OPTIONS = {"horizon": 10, "image_size": IMAGE, "threads": 1}
SETTINGS = ["simulator.horizon=10", f"simulator.options.image_size={IMAGE}", "simulator.threads=1"]


def record(folder: Path, checkpoint: Path, *settings: str, **choice: object) -> Path:
    config = read_config(RecordConfig, None, [*SETTINGS, "simulator.slots=2", *settings])
    chosen = Choice(**({"episodes": 3} | choice))  # type: ignore[arg-type]
    found = record_rollouts(checkpoint, config, chosen, folder, "cpu", lambda *_: None)
    assert found.played == 3
    return folder


@pytest.mark.integration
def test_what_is_written_is_what_the_policy_plays_in_its_chunks(tmp_path: Path, checkpoint: Path):
    """Decisions come every 4 actions, with the noise that they have when chunks are played whole."""
    found = read_demonstrations(record(tmp_path / "d", checkpoint))
    assert found.frame_index.tolist() == [*range(10)] * 3
    assert found.success is not None
    assert found.success.tolist() == [False] * 3
    policy = load_policy(checkpoint, device="cpu")
    with Crew(CrewPlan(SimulatorFactory("treadle.simulators.tabletop:Tabletop", OPTIONS), 1)) as crew:
        scenarios = crew.scenarios("train", "train", 0, 3)
        assert found.scenarios == [scenario.id for scenario in scenarios]
        for episode, scenario in enumerate(scenarios):
            lanes = Lanes(crew, Session(10), ScenarioList(("train", "train"), [episode], crew.rows), policy.chunk)
            actor, decided = _Keeping(policy, Sampling()), []
            actor.kept = decided
            play(lanes, actor)
            part = found.episode_index == episode
            wanted = np.concatenate(decided)[:10]
            wanted[:, 6] = wanted[:, 6].clip(0, 1)
            assert np.array_equal(found.actions[part], wanted)
            assert found.instructions[10 * episode] == scenario.instruction


class _Keeping(Actor):
    """Keeps what was decided for its only slot."""

    kept: list[np.ndarray]

    def decide(self, lanes, rows):
        found = super().decide(lanes, rows)
        self.kept.append(found.actions[0].copy())
        return found


@pytest.mark.integration
def test_the_same_call_writes_the_same_data_set_whatever_the_slots(tmp_path: Path, checkpoint: Path):
    first = read_demonstrations(record(tmp_path / "a", checkpoint))
    other = read_demonstrations(record(tmp_path / "b", checkpoint, "simulator.slots=3", "collection.lanes=3"))
    assert np.array_equal(first.actions, other.actions)
    assert np.array_equal(first.frames, other.frames)
    later = read_demonstrations(record(tmp_path / "c", checkpoint, first=1))
    assert later.scenarios is not None
    assert first.scenarios is not None
    assert later.scenarios[:2] == first.scenarios[1:]
    assert np.array_equal(later.actions[:20], first.actions[10:])


@pytest.mark.integration
def test_without_a_success_nothing_is_written(tmp_path: Path, checkpoint: Path):
    with pytest.raises(OutputError, match=r"none of 3 episodes succeeded, .* all \(without --success-only\)"):
        record(tmp_path / "d", checkpoint, success_only=True)
    assert not (tmp_path / "d").exists()
    with pytest.raises(ConfigError, match="--first 1000000000: suite 'train' has"):
        record(tmp_path / "d", checkpoint, first=10**9)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/mine").write_text("x")
    with pytest.raises(OutputError, match="is not an empty folder"):
        record(tmp_path / "d", checkpoint)


@pytest.mark.integration
def test_the_command(tmp_path: Path, checkpoint: Path):
    arguments = [str(checkpoint), *SETTINGS, "--episodes", "2", "--output", str(tmp_path / "d"), "--device", "cpu"]
    result = CliRunner().invoke(app, ["record", *arguments, "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    assert "2 episodes, 20 frames; 0 of 2 succeeded" in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == {"output": str(tmp_path / "d"), "played": 2, "successes": 0, "episodes": 2, "frames": 20}
    assert len(read_demonstrations(tmp_path / "d").actions) == 20
