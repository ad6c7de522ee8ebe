"""A robot of one's own: a data set that LeRobot's writer made, and no simulator."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from treadle.config.loading import read_config
from treadle.config.robot import RobotConfig
from treadle.config.supervised import ImitationConfig, SupervisedConfig, TinyModelConfig
from treadle.data.demonstrations import open_demonstrations, read_demonstrations
from treadle.data.stored_frames import StoredFrames
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy
from treadle.policies.embodiment import FILE, Embodiment, read_embodiment
from treadle.supervised.chunks import Chunks
from treadle.supervised.imitation import imitate
from treadle.supervised.inputs import KeptInputs, StreamedInputs, make_inputs
from treadle.supervised.open_loop import open_loop_error
from treadle.supervised.robot import train_on_dataset
from treadle.supervised.train import train_supervised

ARMS = Path(__file__).parents[1] / "fixtures" / "lerobot_arms"
TINY = TinyModelConfig(width=32, layers=1, mlp=64, tower_widths=((8, 16, 16, 16), (8, 8, 8, 8)))


def config(output: Path, **changes: Any) -> SupervisedConfig:
    values = {
        "name": "arms",
        "output": output,
        "device": "cpu",
        "torch_threads": 1,
        "dataset": ARMS / "v3.0",
        "model": TINY,
        "robot": RobotConfig(name="my-arms", held_out=1),
        "imitation": ImitationConfig(
            steps=150, batch=8, learning_rate=3e-3, freeze_vision=False, grounding_share=0, held=True
        ),
    }
    return SupervisedConfig(**(values | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_supervised(config(tmp_path_factory.mktemp("runs")))


@pytest.mark.integration
def test_training_lowers_the_open_loop_error_and_holds_the_joints_at_the_end(trained: Path):
    errors = json.loads((trained / "evaluation/open_loop.json").read_text())
    assert errors["held_out"] == 1
    assert errors["after"]["mean"] < 0.5 * errors["before"]["mean"]
    # Episodes of 11 frames in chunks of 4: one place past the end of the one that is held out.
    assert errors["after"]["decisions"] == 3
    assert errors["after"]["past_end"] < 0.5 * errors["before"]["past_end"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["imitation/loss"] < lines[0]["imitation/loss"]


@pytest.mark.integration
def test_the_policy_has_the_statistics_of_the_data_set_under_the_robots_name(trained: Path):
    policy = load_policy(trained / "policy", device="cpu")
    assert policy.scaling is not None
    assert policy.scaling.statistics == "my-arms"
    learned = read_demonstrations(ARMS / "v3.0").actions[:30]
    assert policy.scaling.action.high == pytest.approx(np.quantile(learned.astype(float), 0.99, axis=0), abs=1e-5)
    robot = read_embodiment(trained / "policy")
    assert robot is not None
    assert (robot.name, robot.cameras, robot.proprioception, robot.fps) == ("my-arms", ["top", "wrist"], 14, 10)
    assert {dimension.kind for dimension in robot.actions} == {"absolute"}
    assert robot.actions[3].name == "joint_3"


@pytest.mark.integration
def test_a_checkpoint_goes_on_learning_from_the_older_format(trained: Path, tmp_path: Path):
    start = str(trained / "policy")
    settings = ImitationConfig(steps=1, batch=4, grounding_share=0)
    robot = RobotConfig(name="other", deltas=True, grippers=(13,))
    run = train_supervised(config(tmp_path, checkpoint=start, dataset=ARMS / "v2.1", imitation=settings, robot=robot))
    policy, found = load_policy(run / "policy", device="cpu"), read_embodiment(run / "policy")
    assert policy.scaling is not None
    assert found is not None
    assert policy.scaling.statistics == "other"
    assert policy.scaling.action.scaled.tolist() == [True] * 13 + [False]
    assert found.deltas
    assert found.actions[13].kind == "gripper"
    # A joint moves by 0.005 times its number a step, and a chunk has 4 actions: differences of up to 0.02 of joint 0.
    assert policy.scaling.action.high[0] == pytest.approx(0.02, abs=1e-4)
    assert policy.scaling.action.low[0] == pytest.approx(-0.02, abs=1e-4)


def learn(policy: torch.nn.Module, cache_gb: float) -> dict[str, torch.Tensor]:
    demonstrations = open_demonstrations(ARMS / "v3.0")
    dimensions = Embodiment.of(RobotConfig(name="a"), demonstrations, tuple("abcdefghijklmn")).dimensions
    chunks = Chunks.of(demonstrations, 4, dimensions)
    settings = ImitationConfig(steps=3, batch=8, freeze_vision=False, grounding_share=0, cache_gb=cache_gb)
    imitate(policy, demonstrations, chunks, settings, 0, None, lambda *_: None)  # type: ignore[arg-type]
    return policy.state_dict()


@pytest.mark.integration
def test_a_streamed_data_set_teaches_the_same(trained: Path, monkeypatch: pytest.MonkeyPatch):
    kept = learn(load_policy(trained / "policy", device="cpu"), 4.0)
    asked: list[int] = []
    inner = StoredFrames.__getitem__

    def spy(self, rows):
        found = inner(self, rows)
        asked.append(len(found))
        return found

    monkeypatch.setattr(StoredFrames, "__getitem__", spy)
    streamed = learn(load_policy(trained / "policy", device="cpu"), 0.0)
    assert asked == [1, 8, 8, 8]
    assert all(torch.equal(kept[name], streamed[name]) for name in kept)


def test_inputs_are_kept_where_they_fit(trained: Path):
    policy, demonstrations = load_policy(trained / "policy", device="cpu"), open_demonstrations(ARMS / "v3.0")
    assert isinstance(make_inputs(policy, demonstrations, encode=True, cache_gb=1e-6), StreamedInputs)
    kept = make_inputs(policy, demonstrations, encode=True, cache_gb=1.0)
    assert isinstance(kept, KeptInputs)
    assert len(kept.take(torch.arange(41))) == 41


LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
from treadle.data.demonstration_writer import DemonstrationWriter
from treadle.data.demonstrations import open_demonstrations
folder, side, count = Path(sys.argv[1]), 768, 96
with DemonstrationWriter(folder, fps=10, cameras=("front",), height=side, width=side, action_names=("x",)) as writer:
    for episode in range(4):
        shade = np.arange(count // 4, dtype=np.uint8) + count // 4 * episode
        frames = np.broadcast_to(shade[:, None, None, None, None], (count // 4, 1, side, side, 3))
        numbers = np.ones((count // 4, 1), np.float32)
        writer.add_episode(frames, numbers[:, :0], numbers, "go", True, "0")
frames = open_demonstrations(folder).frames
rows = np.random.default_rng(0).permutation(count)
frames[rows[:8]]
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 70 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for first in range(0, count, 8):
    part = rows[first : first + 8]
    off = np.abs(frames[part].mean((1, 2, 3, 4)) - part)
    assert off.max() < 3, off
print("streamed", frames.nbytes // 2**20)
try:
    frames[:]
except MemoryError:
    print("too large at once")
"""


def test_memory_stays_flat_with_a_data_set_larger_than_the_limit(tmp_path: Path):
    command = [sys.executable, "-c", LARGE, str(tmp_path / "set")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["streamed 162", "too large at once"], done.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"robot": RobotConfig(name="a", held_out=4)}, r"robot.held_out 4: the data set has 4 episodes, .* at most 3"),
        ({"robot": RobotConfig(name="a", grippers=(14,))}, r"robot.grippers: found 14; .* the dimensions 0 to 13"),
        ({"cameras": ("front",)}, r"has no camera 'front'; it has top, wrist"),
        ({"imitation": ImitationConfig(grounding_share=0)}, "imitation.freeze_vision true without a checkpoint"),
    ],
)
def test_what_cannot_be_learned_is_said_before_anything_is_made(tmp_path: Path, changes: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        train_on_dataset(config(tmp_path, **changes))
    assert not any(tmp_path.iterdir())


def test_a_robot_needs_a_data_set_and_a_plain_name(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"robot.name 'a' without a dataset"):
        read_config(SupervisedConfig, None, ["robot.name=a"])
    with pytest.raises(ConfigError, match=r"robot.name"):
        read_config(SupervisedConfig, None, ["robot.name=a/b", "dataset=x"])


class _Still:
    """A policy that keeps asking for the first proprioception it was shown."""

    chunk, device = 4, torch.device("cpu")

    def eval(self):
        return self

    def prepare(self, frames, instructions, proprioception):
        return proprioception

    def act(self, inputs, sampling, keys):
        found = type("Decision", (), {})()
        found.actions = torch.from_numpy(inputs)[:, None].expand(-1, 4, -1)
        return found


def test_the_open_loop_error_by_hand():
    """Proprioception is the target before: a joint is 1, 2, 3, 4 steps behind, and in the last chunk fewer are left."""
    found = open_demonstrations(ARMS / "v2.1", ["top"])
    error = open_loop_error(_Still(), found, None, first=22, stop=30)  # type: ignore[arg-type]
    # Episode 2 has 8 frames, two whole chunks: 0.005 times (1 + 2 + 3 + 4) / 4 of joint 0.
    assert error.decisions == 2
    assert error.of_dimensions[0] == pytest.approx(0.0125, abs=1e-6)
    assert error.of_dimensions[13] == pytest.approx(14 * 0.0125, abs=1e-5)
    spread = found.actions.astype(float).std(axis=0)
    assert error.mean == pytest.approx((np.array(error.of_dimensions) / spread).mean())
    assert error.past_end is None
    # Episode 3 has 11 frames: at the last decision 3 are left, and the 4th place is past the end, 3 steps behind.
    last = open_loop_error(_Still(), found, None, first=38)  # type: ignore[arg-type]
    assert last.past_end == pytest.approx((3 * 0.005 * np.arange(1, 15) / spread).mean(), rel=1e-4)


def test_a_robots_file_is_typed(tmp_path: Path, trained: Path):
    shutil.copy(trained / "policy" / FILE, tmp_path / FILE)
    text = (tmp_path / FILE).read_text()
    for wrong, said in [('"fps": "10"', "fps: found"), ('"fps": 0', "fps: found 0"), ('"fps": 10, "x": 1', "key 'x'")]:
        (tmp_path / FILE).write_text(text.replace('"fps": 10', wrong))
        with pytest.raises(CheckpointError, match=f"{FILE}: .*{said}"):
            read_embodiment(tmp_path)
    assert read_embodiment(tmp_path / "nowhere") is None
