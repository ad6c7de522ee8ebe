"""Frames to pixels. The official processor's resize, by Pillow, is compared in the parity tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from policy_samples import INSTRUCTIONS, Official, make_tiny

from treadle.errors import ConfigError
from treadle.policies.prismatic.image import Resize, Strategy, crop_centre, fit, prepare
from treadle.policies.prismatic.jpeg import recompress
from treadle.policies.prismatic.openvla_oft import OpenVLAOFT
from treadle.policies.prismatic.resampling import lanczos, torch_bicubic

FIXTURE = Path(__file__).parents[2] / "fixtures" / "image_preparation.npz"


def test_crop_is_tensorflows(official: Official) -> None:
    """`center_crop.npz`: obs_1_primary.png cropped to 0.9 of its area as the official evaluation does, by
    `tf.image.crop_and_resize` of TensorFlow 2.21 on a CPU: every 14th pixel, and sums over all.
    """
    with np.load(Path(__file__).parents[2] / "fixtures" / "center_crop.npz") as archive:
        strided, sums = archive["strided"], archive["sums"]
    frames = torch.tensor(official.frames(1, 1)[0])
    cropped = crop_centre(frames, 0.9, (224, 224))[0].numpy()
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


def picture(height: int, width: int) -> np.ndarray:
    """[H, W, 3] blocks of 8 random colours, a ramp over them, and noise: edges, and levels of all sizes."""
    rng = np.random.default_rng(height * 1000 + width)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    ramp = np.arange(width)[:, None] // 8 - np.arange(height)[:, None, None] // 8
    return (blocks + ramp + rng.integers(-9, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(256, 256), (240, 320), (45, 83)], ids=str)
@pytest.mark.parametrize("work", ["jpeg", "lanczos", "bicubic", "crop"])
def test_preparation_is_that_of_the_published_programs(work: str, size: tuple[int, int]) -> None:
    """`image_preparation.npz`: what TensorFlow 2.21 makes of `picture` by `tf.io.encode_jpeg` and `decode_image`, by
    `tf.image.resize` ("lanczos3", antialiased, of what JPEG left) and by `tf.image.crop_and_resize` of 0.9 of the area,
    and what torchvision 0.28 makes of it by `resize` of a tensor (bicubic, antialiased), on a CPU; all but `jpeg` to
    224 x 224. Of each every 7th pixel, and sums over all.
    """
    make = {
        "jpeg": recompress,
        "lanczos": lambda frames: lanczos(recompress(frames), (224, 224)),
        "bicubic": lambda frames: torch_bicubic(frames, (224, 224)),
        "crop": lambda frames: crop_centre(frames, 0.9, (224, 224)),
    }
    made = make[work](torch.from_numpy(picture(*size))[None])[0].numpy()
    with np.load(FIXTURE) as archive:
        strided, sums = archive[f"{work}_{size[0]}x{size[1]}"], archive[f"{work}_{size[0]}x{size[1]}_sums"]
    np.testing.assert_array_equal(made[3::7, 5::7], strided)
    np.testing.assert_array_equal(made.astype(np.int64).sum((0, 1)), sums)


def test_the_choices_of_resizing() -> None:
    frames = torch.from_numpy(np.stack([picture(48, 64), picture(48, 64)[::-1].copy()]))
    small = (32, 32)

    def made(resize: Resize, share: float = 0.9, strategy: Strategy = "resize-naive") -> torch.Tensor:
        return prepare(frames, small, resize, strategy, (0, 0, 0), share)

    squeezed = lanczos(recompress(frames), small)
    assert torch.equal(made("jpeg-lanczos"), crop_centre(squeezed, 0.9, small))
    assert torch.equal(made("jpeg-lanczos", 1, "letterbox"), squeezed), "it is square before the strategy is asked"
    assert torch.equal(made("torch"), crop_centre(torch_bicubic(frames, small), 0.9, small))
    assert torch.equal(made("pillow"), crop_centre(fit(frames, small, "resize-naive", (0, 0, 0)), 0.9, small))
    assert torch.equal(made("crop"), crop_centre(frames, 0.9, small))
    # Frames of the right size are as they are.
    whole = prepare(frames, (48, 64), "jpeg-lanczos", "resize-naive", (0, 0, 0), 1)
    assert torch.equal(whole, frames)
    # Each frame of a batch is prepared on its own.
    for resize in ("pillow", "torch", "jpeg-lanczos", "crop"):
        alone = prepare(frames[1:], small, resize, "resize-naive", (0, 0, 0), 0.9)
        assert torch.equal(made(resize)[1:], alone)


def test_jpeg_keeps_a_frame_of_one_grey() -> None:
    # The coefficient of the mean is 8 (129 - 128) = 8, four steps of 2: it is kept, and so is the grey.
    grey = torch.full((1, 24, 40, 3), 129, dtype=torch.uint8)
    assert torch.equal(recompress(grey), grey)


def test_the_resize_of_a_policy(tokenizer: Path) -> None:
    frames = np.stack([picture(48, 64)])[:, None]
    inputs = make_tiny(tokenizer, resize="crop", center_crop=0.9).prepare(
        frames, INSTRUCTIONS[:1], np.zeros((1, 4), np.float32)
    )
    assert inputs.frames is not None
    assert torch.equal(inputs.frames[:, 0], crop_centre(torch.from_numpy(frames[:, 0]), 0.9, (32, 32)))
    with pytest.raises(ConfigError, match='resize: found "cubic"; allowed: '):
        make_tiny(tokenizer, resize="cubic")


def test_crop_by_hand() -> None:
    # A quarter of 5 x 5 pixels: samples at 1, 1.5, 2, 2.5, 3. Levels 40 c + 4 r at row r, column c.
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    frame = (40 * columns + 4 * rows).to(torch.uint8)[None, ..., None].expand(1, 5, 5, 3)
    places = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0])
    expected = (40 * places + 4 * places[:, None]).to(torch.uint8)
    assert torch.equal(crop_centre(frame, 0.25, (5, 5))[0, ..., 1], expected)
    assert crop_centre(frame, 1.0, (5, 5)) is frame


def test_crop_in_prepare(tokenizer: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    policy = make_tiny(tokenizer, center_crop=0.9)
    inputs = policy.prepare(frames, INSTRUCTIONS[:2], np.zeros((2, 4), np.float32))
    assert torch.equal(inputs.frames[:, 0], crop_centre(torch.from_numpy(frames[:, 0]), 0.9, (32, 32)))
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
    with pytest.raises(ConfigError, match=r"of a camera: float32 \[2, 32, 32, 3\]; they must be numpy arrays of uint8"):
        tiny.prepare(np.zeros((2, 1, 32, 32, 3), np.float32), INSTRUCTIONS[:2], state)
    with pytest.raises(ConfigError, match=r"uint8 \[2, 32, 32\]; they must be"):
        tiny.prepare([np.zeros((2, 32, 32), np.uint8)], INSTRUCTIONS[:2], state)
    with pytest.raises(ConfigError, match=r"cameras of \[2, 1\] samples"):
        tiny.prepare([np.zeros((n, 32, 32, 3), np.uint8) for n in (2, 1)], INSTRUCTIONS[:2], state)
