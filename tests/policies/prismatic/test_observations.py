"""What a user gives that a policy cannot take is a ConfigError that says what it takes."""

from typing import Any

import numpy as np
import pytest
import torch
from policy_samples import sample_inputs

from treadle.data.noise import noise_key
from treadle.errors import ConfigError
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.sampling import Sampling

FRAMES = np.zeros((2, 1, 32, 32, 3), np.uint8)
CAMERA = FRAMES[:, 0]
TEXTS = ["lift the ball", "lift"]
STATE = np.zeros((2, 4), np.float32)


@pytest.mark.parametrize(
    ("frames", "instructions", "state", "message"),
    [
        (FRAMES[:0], [], STATE[:0], "frames and instructions of no sample; give one at least"),
        (FRAMES[:, :0], TEXTS, STATE, "frames: no camera"),
        ([], TEXTS, STATE, "frames: no camera"),
        (None, TEXTS, STATE, r"frames of a camera: NoneType \[\]; they must be numpy arrays of uint8 \[B, H, W, 3\]"),
        (CAMERA, TEXTS, STATE, r"frames of a camera: uint8 \[2, 32, 32, 3\]; .* or a list of one per camera"),
        (FRAMES.astype(np.float32), TEXTS, STATE, r"frames of a camera: float32 \[2, 32, 32, 3\]"),
        ([torch.from_numpy(CAMERA)], TEXTS, STATE, r"frames of a camera: torch\.uint8 \[2, 32, 32, 3\]"),
        ([CAMERA, CAMERA[:1]], TEXTS, STATE, r"cameras of \[2, 1\] samples"),
        ([CAMERA[:, :0]], TEXTS, STATE, "a side has no pixels"),
        (FRAMES, TEXTS[:1], STATE, "frames of 2 samples, instructions of 1"),
        (FRAMES, "lift", STATE, "instructions: 'lift'; they must be a list of texts, one for each sample"),
        (FRAMES, [None, "lift"], STATE, r"instructions: \[None, 'lift'\]; they must be a list of texts"),
        (FRAMES, None, STATE, "instructions: None; they must be a list of texts"),
        (FRAMES, TEXTS, None, r"the policy takes proprioception \[B, 4\]; none was given"),
        (FRAMES, TEXTS, STATE[0], r"proprioception \[4\] of 2 samples; the policy takes \[2, 4\]"),
        (FRAMES, TEXTS, STATE[:1], r"proprioception \[1, 4\] of 2 samples"),
        (FRAMES, TEXTS, [["x"] * 4] * 2, "proprioception: no array of numbers: could not convert"),
    ],
)
def test_observations(tiny: OpenVLAOFT, frames: Any, instructions: Any, state: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny.prepare(frames, instructions, state)


def test_inputs_keys_and_choices(policy: PrismaticPolicy) -> None:
    inputs = sample_inputs(policy, 2)
    with pytest.raises(ConfigError, match="keys: 3 for 2 samples; give each sample one"):
        policy.act(inputs, Sampling(), noise_key(np.arange(3)))
    with pytest.raises(ConfigError, match=r"choice \[2, 3\]; it must be \[2, 6\], as act returned it"):
        policy.evaluate(inputs, torch.zeros(2, 3, dtype=torch.long), Sampling())
    with pytest.raises(ConfigError, match="inputs: list; give what the policy's own prepare or encode returned"):
        policy.act([FRAMES], Sampling())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"sampling: None; give a treadle\.Sampling"):
        policy.act(inputs, None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"sampling: None; give a treadle\.Sampling"):
        policy.evaluate(inputs, torch.zeros(2, 6, dtype=torch.long), None)  # pyright: ignore[reportArgumentType]
