"""The image settings of a directory, `preprocessor_config.json`: what is used, and what has one supported value."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from treadle.errors import CheckpointError
from treadle.policies.prismatic.image import NAIVE, Strategy
from treadle.reading import parse_json
from treadle.tables import Table, read_table

PREPROCESSOR = "preprocessor_config.json"
ROUNDING = 2**-7
"""Published numbers that are applied are those beside them, rounded to bfloat16."""

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
Spreads = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[list[Level], Field(min_length=3, max_length=3)]
Size = Annotated[list[int], Field(min_length=2, max_length=2)]


class Normalize(Table):
    """Of a tower: subtract a mean, then divide by a std."""

    mean: Channels
    std: Spreads
    inplace: bool = False


class Resize(Table):
    """Of a tower: 3 is Pillow's bicubic."""

    size: int | Size
    interpolation: Literal[3, "bicubic"] = 3
    max_size: None = None
    antialias: Literal[True] = True


class Crop(Table):
    """Of a tower: the middle, after the resize."""

    output_size: Size


class Preprocessor(Table):
    """The file. What the official code applies are the keys that begin with `tvf`; those beside them must agree."""

    ignored: ClassVar[frozenset[str]] = frozenset(["processor_class", "auto_map", "feature_extractor_type"])

    image_processor_type: Literal["PrismaticImageProcessor"] = "PrismaticImageProcessor"
    image_resize_strategy: Strategy
    tvf_normalize_params: list[Normalize]
    tvf_resize_params: list[Resize] | None = None
    tvf_crop_params: list[Crop] | None = None
    tvf_do_letterbox: bool | None = None
    tvf_letterbox_fill: Colour | None = None
    input_sizes: list[list[int]] | None = None
    interpolations: list[Literal["bicubic"]] | None = None
    means: list[Channels] | None = None
    stds: list[Spreads] | None = None
    use_fused_vision_backbone: bool | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for name, key in (("means", "mean"), ("stds", "std")):
            rough = getattr(self, name)
            applied = [getattr(entry, key) for entry in self.tvf_normalize_params]
            if rough is not None and not _close(rough, applied):
                raise ValueError(f"{name}: found {rough}, but tvf_normalize_params has {applied}; they must agree")
        letterbox = self.image_resize_strategy == "letterbox"
        if self.tvf_do_letterbox not in (None, letterbox):
            raise ValueError(
                f"image_resize_strategy: found {self.image_resize_strategy!r}, but tvf_do_letterbox is "
                f"{str(self.tvf_do_letterbox).lower()}; they must agree"
            )
        return self

    def fill(self) -> tuple[int, int, int]:
        """The colour of a letterbox's bars: by default the mean of the last tower."""
        given = self.tvf_letterbox_fill or [int(x * 255) for x in (self.means or [[0.0] * 3])[-1]]
        return given[0], given[1], given[2]


@dataclass(frozen=True)
class ImageSettings:
    """How frames become pixel values."""

    strategy: Strategy
    fill: tuple[int, int, int]
    """Colour of the bars of a letterbox."""
    means: Tensor
    """[towers, 3]."""
    stds: Tensor
    """[towers, 3]."""


def read_images(files: Mapping[str, bytes], side: int, towers: int, strategy: Strategy | None = None) -> ImageSettings:
    """The settings in `preprocessor_config.json` among `files`, for towers that see `side` pixels. `strategy` is what
    config.json says. Raises CheckpointError, which names the key.
    """
    if PREPROCESSOR not in files:
        raise CheckpointError(f"{PREPROCESSOR}: missing; it holds the image normalisation of each tower")
    found = read_table(Preprocessor, parse_json(files[PREPROCESSOR], PREPROCESSOR, CheckpointError), PREPROCESSOR)
    if strategy not in (None, found.image_resize_strategy):
        raise CheckpointError(
            f"{PREPROCESSOR}: image_resize_strategy: found {found.image_resize_strategy!r}, but config.json has "
            f"{strategy!r}; they must agree"
        )
    stretched: int | list[int] = [side, side] if found.image_resize_strategy == NAIVE else side
    expected: dict[str, object] = {
        "input_sizes": [[3, side, side]] * towers,
        "use_fused_vision_backbone": towers == 2,
        "tvf_resize_params": [stretched] * towers,
        "tvf_crop_params": [[side, side]] * towers,
    }
    there: dict[str, object] = {
        "input_sizes": found.input_sizes,
        "use_fused_vision_backbone": found.use_fused_vision_backbone,
        "tvf_resize_params": found.tvf_resize_params and [entry.size for entry in found.tvf_resize_params],
        "tvf_crop_params": found.tvf_crop_params and [entry.output_size for entry in found.tvf_crop_params],
    }
    for name, wanted in expected.items():
        if there[name] not in (None, wanted):
            raise CheckpointError(
                f"{PREPROCESSOR}: {name}: found {there[name]}; allowed: {wanted}, for {towers} towers of {side} pixels "
                f"and {found.image_resize_strategy}"
            )
    for name in ("tvf_normalize_params", "interpolations", "means", "stds"):
        entries = getattr(found, name)
        if entries is not None and len(entries) != towers:
            raise CheckpointError(f"{PREPROCESSOR}: {name}: {len(entries)} entries for {towers} towers")
    applied = found.tvf_normalize_params
    means, stds = (torch.tensor([getattr(entry, key) for entry in applied]) for key in ("mean", "std"))
    return ImageSettings(found.image_resize_strategy, found.fill(), means, stds)


def make_preprocessor(size: tuple[int, int], towers: int) -> bytes:
    """A `preprocessor_config.json` that scales pixels to [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    content = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": NAIVE,
        "input_sizes": [[3, *size]] * towers,
        "interpolations": ["bicubic"] * towers,
        "means": [half] * towers,
        "stds": [half] * towers,
        "tvf_normalize_params": [{"inplace": False, "mean": half, "std": half}] * towers,
        "use_fused_vision_backbone": towers == 2,
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _close(rough: list[list[float]], applied: list[list[float]]) -> bool:
    pairs = zip((x for row in rough for x in row), (x for row in applied for x in row), strict=False)
    return all(abs(x - y) <= ROUNDING * max(abs(x), 0.1) for x, y in pairs)
