"""Frames to pixels. The resize is compared with Pillow in the parity tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from policy_samples import INSTRUCTIONS, Official, make_tiny

from treadle.errors import ConfigError
from treadle.policies.prismatic.image import Strategy, crop_centre, fit
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT


def test_crop_is_tensorflows(official: Official) -> None:
    """`center_crop.npz`: obs_1_primary.png cropped to 0.9 of its area as the official evaluation does, by
    `tf.image.crop_and_resize` of TensorFlow 2.21 on a CPU: every 14th pixel, and sums over all.
    """
    with np.load(Path(__file__).parents[2] / "fixtures" / "center_crop.npz") as archive:
        strided, sums = archive["strided"], archive["sums"]
    frames = torch.tensor(official.frames(1, 1)[0])
    cropped = crop_centre(frames, 0.9)[0].numpy()
    np.testing.assert_array_equal(cropped[3::14, 5::14], strided)
    np.testing.assert_array_equal(cropped.astype(np.int64).sum((0, 1)), sums)


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "resize-crop"])
def test_frames_become_square_as_torchvision_makes_them(strategy: Strategy) -> None:
    """`resize_strategies.npz`: frames wider and taller than a square, one by a single pixel, and what the official
    image processor's steps (torchvision 0.28: pad, resize and center_crop of Pillow images) make of them at 16 pixels.
    """
    with np.load(Path(__file__).parents[2] / "fixtures" / "resize_strategies.npz") as archive:
        for index in range(3):
            frame, expected = archive[f"frame_{index}"], archive[f"{strategy}_{index}"]
            square = fit(torch.from_numpy(frame)[None], (16, 16), strategy, (123, 116, 103))[0]
            np.testing.assert_array_equal(square.numpy(), expected)


def test_crop_by_hand() -> None:
    # A quarter of 5 x 5 pixels: samples at 1, 1.5, 2, 2.5, 3. Levels 40 c + 4 r at row r, column c.
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    frame = (40 * columns + 4 * rows).to(torch.uint8)[None, ..., None].expand(1, 5, 5, 3)
    places = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0])
    expected = (40 * places + 4 * places[:, None]).to(torch.uint8)
    assert torch.equal(crop_centre(frame, 0.25)[0, ..., 1], expected)
    assert crop_centre(frame, 1.0) is frame


def test_crop_in_prepare(tokenizer: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    policy = make_tiny(tokenizer, center_crop=0.9)
    inputs = policy.prepare(frames, INSTRUCTIONS[:2], np.zeros((2, 4), np.float32))
    assert torch.equal(inputs.frames[:, 0], crop_centre(torch.from_numpy(frames[:, 0]), 0.9))
    with pytest.raises(ConfigError, match="center_crop: found 0; allowed: greater than 0"):
        make_tiny(tokenizer, center_crop=0)


def test_cameras_of_different_sizes(tiny: OpenVLAOFT) -> None:
    rng = np.random.default_rng(0)
    wide, small = (rng.integers(0, 256, (2, *size, 3), dtype=np.uint8) for size in ((48, 64), (20, 20)))
    inputs = tiny.prepare([wide, small], INSTRUCTIONS[:2], np.zeros((2, 4), np.float32))
    assert inputs.frames is not None
    assert inputs.frames.shape == (2, 2, 32, 32, 3)
    # Images that a simulator gives upside down, as a view that runs backwards.
    turned = tiny.prepare([wide[:, ::-1]], INSTRUCTIONS[:2], np.zeros((2, 4), np.float32))
    again = tiny.prepare([wide[:, ::-1].copy()], INSTRUCTIONS[:2], np.zeros((2, 4), np.float32))
    assert turned.frames is not None
    assert again.frames is not None
    assert torch.equal(turned.frames, again.frames)


def test_frames_that_do_not_fit(tiny: OpenVLAOFT) -> None:
    state = np.zeros((2, 4), np.float32)
    with pytest.raises(ConfigError, match=r"frames of a camera: float32 \[2, 32, 32, 3\]; they must be uint8"):
        tiny.prepare(np.zeros((2, 1, 32, 32, 3), np.float32), INSTRUCTIONS[:2], state)
    with pytest.raises(ConfigError, match=r"uint8 \[2, 32, 32\]; they must be"):
        tiny.prepare([np.zeros((2, 32, 32), np.uint8)], INSTRUCTIONS[:2], state)
    with pytest.raises(ConfigError, match=r"cameras of \[2, 1\] samples"):
        tiny.prepare([np.zeros((n, 32, 32, 3), np.uint8) for n in (2, 1)], INSTRUCTIONS[:2], state)
