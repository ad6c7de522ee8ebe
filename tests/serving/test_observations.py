"""Cameras, proprioception and instruction, found in messages by the names that clients use."""

import numpy as np
import pytest

from treadle.errors import RequestError
from treadle.serving.observations import read_observation

FRONT = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
WRIST = FRONT[::-1].copy()
STATE = np.array([0.5, -1], np.float64)


@pytest.mark.parametrize(
    "message",
    [
        {"front": FRONT, "wrist": WRIST, "state": STATE, "prompt": "go"},
        {"observation/front": FRONT, "observation/wrist": WRIST, "observation/state": STATE, "prompt": "go"},
        {"images": {"front": FRONT, "wrist": WRIST}, "state": STATE, "prompt": "go", "other": np.zeros(3)},
        {
            "observation.images.front": FRONT.transpose(2, 0, 1),
            "observation.images.wrist": (WRIST / 255).astype(np.float32),
            "observation.state": [0.5, -1],
            "prompt": "go",
        },
    ],
)
def test_names_of_openpi_and_of_lerobot_mean_the_same(message: dict):
    found = read_observation(message, ["wrist", "front"])
    assert [frames.shape for frames in found.frames] == [(1, 4, 6, 3)] * 2
    assert np.array_equal(found.frames[0][0], WRIST)
    assert np.array_equal(found.frames[1][0], FRONT)
    assert found.state is not None
    assert found.state.dtype == np.float32
    assert found.state.tolist() == [[0.5, -1]]
    assert found.prompt == "go"


def test_one_camera_needs_no_name():
    found = read_observation({"observation/image": FRONT, "prompt": "go"}, [])
    assert np.array_equal(found.frames[0][0], FRONT)
    assert found.state is None


GOOD = {"front": FRONT, "state": STATE, "prompt": "go"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": None}, "prompt: found NoneType; allowed: a text"),
        ({"prompt": "x" * 5000}, "prompt: found str; allowed: a text of at most 4096 letters"),
        ({"front": "picture"}, r"front: found str; allowed: \[H, W, 3\]"),
        ({"front": FRONT[..., :2]}, r"front: found uint8 \[4, 6, 2\]; allowed"),
        ({"front": FRONT.astype(np.int64)}, r"front: found int64 \[4, 6, 3\]; allowed"),
        ({"front": FRONT.astype(np.float32)}, r"front: found floats from 0 to 71; allowed: .*floats of 0 to 1"),
        ({"front": np.full((4, 6, 3), np.nan)}, "front: found floats from nan to nan"),
        ({"front": np.zeros((4, 5000, 3), np.uint8)}, "of sides up to 4096"),
        ({"front": np.zeros((0, 5, 3), np.uint8)}, "of sides up to 4096"),
        ({"state": np.zeros((1, 2))}, r"state: found float64 \[1, 2\]; allowed: a vector of numbers"),
        ({"state": "zero"}, "state: found str; allowed: a vector of numbers"),
        ({"images/front": FRONT}, "images/front: front is there too; both mean 'front'"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict, said: str):
    with pytest.raises(RequestError, match=said):
        read_observation(GOOD | change, ["front"])


def test_what_is_missing_is_named():
    with pytest.raises(RequestError, match="the message lacks 'wrist'; it has front, prompt, state"):
        read_observation(GOOD, ["front", "wrist"])
    with pytest.raises(RequestError, match="the message lacks 'prompt'; it has front"):
        read_observation({"front": FRONT}, ["front"])
    with pytest.raises(RequestError, match=r"has 2 pictures \(front, wrist\); start the server with --camera NAME"):
        read_observation(GOOD | {"wrist": WRIST}, [])
