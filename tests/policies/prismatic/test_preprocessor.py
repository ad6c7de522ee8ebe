"""The image settings of a directory: used, or refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from policy_samples import Official

from treadle.errors import CheckpointError
from treadle.policies.prismatic.preprocessor import PREPROCESSOR, ImageSettings, make_preprocessor, read_images


def read(official: Official, change: Callable[[dict[str, Any]], object], **more: Any) -> ImageSettings:
    content = json.loads((official.directory / PREPROCESSOR).read_text())
    change(content)
    return read_images({PREPROCESSOR: json.dumps(content).encode()}, **{"side": 224, "towers": 2, **more})


def letterbox(content: dict[str, Any]) -> None:
    """What the official image processor saves for this strategy."""
    content.update(image_resize_strategy="letterbox", tvf_do_letterbox=True, tvf_letterbox_fill=[127, 127, 127])
    for entry in content["tvf_resize_params"]:
        entry["size"] = 224


def test_what_is_applied(official: Official) -> None:
    found = read(official, lambda c: None)
    assert found.strategy == "resize-naive"
    assert found.means.tolist() == [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
    assert found.stds[0].tolist() == [0.228515625, 0.2236328125, 0.224609375]
    assert read_images({PREPROCESSOR: make_preprocessor((64, 64), 1)}, 64, 1).stds.tolist() == [[0.5] * 3]


def test_letterbox(official: Official) -> None:
    found = read(official, letterbox)
    assert (found.strategy, found.fill) == ("letterbox", (127, 127, 127))

    def without_colour(content: dict[str, Any]) -> None:
        letterbox(content)
        del content["tvf_letterbox_fill"]

    # int(0.5 * 255) of the last tower, as the official code derives it.
    assert read(official, without_colour).fill == (127, 127, 127)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("tvf_normalize_params"), "no 'tvf_normalize_params'; it must be given"),
        (
            lambda c: c["tvf_normalize_params"][0].update(std=[0, 0, 0]),
            r"tvf_normalize_params\[0\]\.std\[0\]: found 0; a",
        ),
        (
            lambda c: c["tvf_normalize_params"][1]["std"].__setitem__(2, -0.5),
            r"tvf_normalize_params\[1\]\.std\[2\]: found",
        ),
        (lambda c: c["tvf_normalize_params"][0]["mean"].pop(), r"tvf_normalize_params\[0\]\.mean: found"),
        (lambda c: c["tvf_normalize_params"][0]["mean"].__setitem__(0, None), r"tvf_normalize_params\[0\]\.mean\[0\]"),
        (lambda c: c["tvf_normalize_params"].pop(), "(means|stds|tvf_normalize_params): "),
        (lambda c: c.update(means=[[0.9] * 3] * 2), "means: found .* but tvf_normalize_params has .* they must agree"),
        (lambda c: c.update(image_resize_strategy="letterbox"), "image_resize_strategy: .*tvf_do_letterbox is false"),
        (lambda c: c.update(image_resize_strategy="crop"), 'image_resize_strategy: found "crop"; allowed: \'resize-n'),
        (lambda c: c.update(tvf_do_letterbox=True), "image_resize_strategy: found 'resize-naive'"),
        (
            lambda c: c.update(image_resize_strategy="resize-crop"),
            r"tvf_resize_params: found \[\[224, 224\], \[224, 224",
        ),
        (
            lambda c: c["interpolations"].__setitem__(1, "bilinear"),
            r"interpolations\[1\]: found \"bilinear\"; allowed: 'b",
        ),
        (
            lambda c: c["tvf_resize_params"][0].update(interpolation=2),
            r"tvf_resize_params\[0\]\.interpolation: found 2",
        ),
        (
            lambda c: c["tvf_resize_params"][1].update(size=[384, 384]),
            r"tvf_resize_params: found \[\[224, 224\], \[384",
        ),
        (
            lambda c: c["tvf_resize_params"][0].update(antialias=False),
            r"tvf_resize_params\[0\]\.antialias: found false",
        ),
        (lambda c: c["tvf_crop_params"][0].update(output_size=[200, 200]), r"tvf_crop_params: found \[\[200, 200\]"),
        (
            lambda c: c.update(input_sizes=[[3, 224, 224], [3, 384, 384]]),
            "input_sizes: found .*; allowed: .* for 2 towers",
        ),
        (lambda c: c.update(use_fused_vision_backbone=False), "use_fused_vision_backbone: found False; allowed: True"),
        (lambda c: c.update(image_processor_type="CLIPImageProcessor"), 'image_processor_type: found "CLIP'),
        (lambda c: c.update(do_flip=True), "unknown key 'do_flip': found true"),
    ],
)
def test_settings_that_are_refused(
    official: Official, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^preprocessor_config\.json: {message}"):
        read(official, change)


def test_config_and_preprocessor_agree(official: Official) -> None:
    with pytest.raises(CheckpointError, match=r"found 'resize-naive', but config\.json has 'letterbox'"):
        read(official, lambda c: None, strategy="letterbox")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_images({PREPROCESSOR: b"{"}, 224, 2)
    with pytest.raises(CheckpointError, match=r"found \[1\]; allowed: an object"):
        read_images({PREPROCESSOR: b"[1]"}, 224, 2)
