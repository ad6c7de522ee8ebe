"""A policy that has learned from some cameras is not shown others without a word."""

import json
from pathlib import Path

import numpy as np
import pytest

from miniature import IMAGE, make_policy
from treadle.errors import CheckpointError, ConfigError
from treadle.policies import load_policy

OPENVLA = Path(__file__).parents[2] / "fixtures" / "openvla_tiny"


def frames(cameras: int) -> np.ndarray:
    return np.zeros((1, cameras, IMAGE, IMAGE, 3), np.uint8)


def test_a_published_openvla_sees_one_camera():
    policy = load_policy(OPENVLA, device="cpu", statistics="bridge_orig")
    policy.prepare(frames(1), ["lift the ball"])
    with pytest.raises(ConfigError, match=r"frames of 2 cameras, the policy has learned from 1; .*options.cameras=2"):
        policy.prepare(frames(2), ["lift the ball"])
    load_policy(OPENVLA, device="cpu", statistics="bridge_orig", cameras=2).prepare(frames(2), ["lift the ball"])


def test_the_number_of_cameras_is_saved(tmp_path: Path):
    state = np.zeros((1, 7), np.float32)
    make_policy(tmp_path / "tokenizer", cameras=2).save(tmp_path / "two")
    policy = load_policy(tmp_path / "two", device="cpu")
    policy.prepare(frames(2), ["lift the ball"], state)
    with pytest.raises(ConfigError, match="frames of 1 cameras, the policy has learned from 2"):
        policy.prepare(frames(1), ["lift the ball"], state)


def test_where_nothing_is_known_any_number_goes(tmp_path: Path):
    for cameras in (1, 3):
        make_policy(tmp_path).prepare(frames(cameras), ["lift the ball"], np.zeros((1, 7), np.float32))


def test_the_number_is_a_whole_one(tmp_path: Path):
    make_policy(tmp_path / "tokenizer", cameras=2).save(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"policy\.options\.cameras: found -1; allowed: greater than or equal to 0"):
        load_policy(tmp_path / "two", device="cpu", cameras=-1)
    file = tmp_path / "two" / "config.json"
    content = json.loads(file.read_text())
    content["treadle"]["cameras"] = "2"
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"'treadle': cameras: found \"2\"; allowed: a valid integer"):
        load_policy(tmp_path / "two", device="cpu")
