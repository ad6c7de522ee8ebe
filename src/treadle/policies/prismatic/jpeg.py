"""What JPEG leaves of frames, as TensorFlow writes it at quality 95 and reads it again, without the file in between.

The format loses information in two places: colours are averaged over 2 x 2 pixels, and coefficients are rounded. The
rest of it loses nothing and is left out. The arithmetic is libjpeg's, in whole numbers: its exact transform to
coefficients (`islow`), its fast one back (`ifast`), so that all levels are the same. ITU-T T.81; Loeffler et al. 1989;
Arai et al. 1988.

Shapes: B samples, H x W pixels, r x c blocks of 8 x 8.
"""

from functools import cache

import torch
from torch import Tensor

_LUMA = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99
"""
"""Steps of coefficients at quality 50, the standard's."""
_SHARE = 10
"""Per cent of those at quality 95."""
_EVEN = (
    *((8192, 8192, 8192, 8192), (10703, 4433, -4433, -10703)),
    *((8192, -8192, -8192, 8192), (4433, -10704, 10704, -4433)),
)
_ODD = (
    *((11363, 9633, 6437, 2260), (9633, -2259, -11362, -6436)),
    *((6437, -11362, 2261, 9633), (2260, -6436, 9633, -11363)),
)
"""What `islow` makes the even coefficients of, and the odd ones, times 2^13: of sums and of differences of samples that
are equally far from both ends.
"""


def recompress(pixels: Tensor) -> Tensor:
    """Frames [B, H, W, 3] uint8 after JPEG."""
    height, width = pixels.shape[1:3]
    colours = _extend(pixels.to(torch.int32).permute(3, 0, 1, 2), rows=2, columns=16)
    luma, *chroma = _to_luma(colours)
    luma = _round(_extend(luma, rows=8), "luma")[:, :height, :width]
    halves = [_round(_extend(_halve(plane), rows=8), "chroma") for plane in chroma]
    halves = [half[:, : (height + 1) // 2, : (width + 1) // 2] for half in halves]
    return _from_luma(luma, *(_double(half)[:, :height, :width] for half in halves))


def _extend(planes: Tensor, rows: int, columns: int = 1) -> Tensor:
    """The last row and column again, until their numbers are multiples."""
    height, width = planes.shape[-2:]
    down = torch.arange(-(-height // rows) * rows, device=planes.device).clamp(max=height - 1)
    across = torch.arange(-(-width // columns) * columns, device=planes.device).clamp(max=width - 1)
    return planes[..., down, :][..., across]


def _to_luma(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Red, green and blue [3, ...] to luma and two chroma; factors are times 2^16."""
    red, green, blue = colours
    half, middle = 1 << 15, 128 << 16
    luma = (19595 * red + 38470 * green + 7471 * blue + half) >> 16
    to_blue = (-11059 * red - 21709 * green + 32768 * blue + middle + half - 1) >> 16
    to_red = (32768 * red - 27439 * green - 5329 * blue + middle + half - 1) >> 16
    return luma, to_blue, to_red


def _from_luma(luma: Tensor, to_blue: Tensor, to_red: Tensor) -> Tensor:
    """[B, H, W, 3] uint8."""
    half, to_blue, to_red = 1 << 15, to_blue - 128, to_red - 128
    red = luma + ((91881 * to_red + half) >> 16)
    green = luma + ((-22554 * to_blue - 46802 * to_red + half) >> 16)
    blue = luma + ((116130 * to_blue + half) >> 16)
    return torch.stack([red, green, blue], dim=-1).clamp(0, 255).to(torch.uint8)


def _halve(plane: Tensor) -> Tensor:
    """Means of 2 x 2 pixels, rounded down and up in turn."""
    total = plane[:, ::2, ::2] + plane[:, ::2, 1::2] + plane[:, 1::2, ::2] + plane[:, 1::2, 1::2]
    turns = 1 + torch.arange(total.shape[-1], device=plane.device, dtype=torch.int32) % 2
    return (total + turns) >> 2


def _double(plane: Tensor) -> Tensor:
    """Twice the rows and columns; each new one is three quarters of the nearest and a quarter of the next."""
    rows = torch.stack([3 * plane + _shifted(plane, -2, -1), 3 * plane + _shifted(plane, -2, 1)], dim=-2)
    tall = rows.flatten(-3, -2)
    before = (3 * tall + _shifted(tall, -1, -1) + 8) >> 4
    after = (3 * tall + _shifted(tall, -1, 1) + 7) >> 4
    return torch.stack([before, after], dim=-1).flatten(-2)


def _shifted(plane: Tensor, dim: int, by: int) -> Tensor:
    """Each one's neighbour; at the edge, itself."""
    count = plane.shape[dim]
    return plane.index_select(dim, (torch.arange(count, device=plane.device) + by).clamp(0, count - 1))


def _round(plane: Tensor, kind: str) -> Tensor:
    """A plane [B, 8r, 8c] after its coefficients were rounded to whole steps."""
    steps, multipliers = (table.to(plane.device) for table in _tables(kind))
    blocks = plane.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    found = _coefficients(blocks - 128)
    # `islow` leaves coefficients eight times as large.
    whole = found.sign() * ((found.abs() + 4 * steps) // (8 * steps))
    levels = ((_samples(whole * multipliers) >> 5) + 128).clamp(0, 255)
    return levels.transpose(-3, -2).flatten(-4, -3).flatten(-2)


@cache
def _tables(kind: str) -> tuple[Tensor, Tensor]:
    """Of luma or chroma, [8, 8] int32: the steps of coefficients, and what whole steps are multiplied with before the
    fast transform, times 4.
    """
    rough = torch.tensor([int(step) for step in (_LUMA if kind == "luma" else _CHROMA).split()], dtype=torch.int64)
    steps = ((rough.view(8, 8) * _SHARE + 50) // 100).clamp(1, 255)
    # Factors of rows and columns that the fast transform leaves to its input, times 2^14.
    factors = (torch.arange(8, dtype=torch.float64) * (torch.pi / 16)).cos() * 2**0.5
    factors[0] = 1
    both = (torch.outer(factors, factors) * (1 << 14)).round().long()
    return steps.int(), ((steps * both + (1 << 11)) >> 12).int()


@cache
def _forward_matrix() -> Tensor:
    """[8, 8] float64: coefficients of eight samples, times 2^13."""
    rows = [row for pair in zip(_EVEN, _ODD, strict=True) for row in pair]
    whole = [[*row, *((-1) ** index * x for x in reversed(row))] for index, row in enumerate(rows)]
    return torch.tensor(whole, dtype=torch.float64)


def _coefficients(blocks: Tensor) -> Tensor:
    """Samples [..., 8, 8] around 0 to coefficients, times 8."""
    matrix = _forward_matrix().to(blocks.device)
    along = ((blocks.double() @ matrix.T + (1 << 10)) / (1 << 11)).floor()
    return ((matrix @ along + (1 << 14)) / (1 << 15)).floor().int()


def _samples(coefficients: Tensor) -> Tensor:
    """Coefficients [..., 8, 8] to samples around 0, times 32."""
    return _back(_back(coefficients, -2), -1)


def _back(values: Tensor, dim: int) -> Tensor:
    """The fast transform along one direction; products lose their fractions, times 2^8, as in libjpeg."""
    first, second, third, fourth, fifth, sixth, seventh, eighth = values.unbind(dim)
    total, apart = first + fifth, first - fifth
    outer = third + seventh
    inner = _times(third - seventh, 362) - outer
    even = (total + outer, apart + inner, apart - inner, total - outer)
    near, cross = sixth + fourth, sixth - fourth
    ends, across = second + eighth, second - eighth
    middle = _times(cross + across, 473)
    odd_0 = ends + near
    odd_1 = _times(cross, -669) + middle - odd_0
    odd_2 = _times(ends - near, 362) - odd_1
    odd_3 = _times(across, 277) - middle + odd_2
    # The last difference has its sign the other way round.
    odd = (odd_0, odd_1, odd_2, -odd_3)
    front = [a + b for a, b in zip(even, odd, strict=True)]
    rear = [a - b for a, b in zip(even, odd, strict=True)]
    return torch.stack([*front, *reversed(rear)], dim=dim)


def _times(values: Tensor, factor: int) -> Tensor:
    return (values * factor) >> 8
