"""Small line and area charts as inline SVG. Colours come from the page, so they follow its light or dark scheme."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 440, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_MAX_POINTS = 400
COLORS = 5
"""Of lines; further ones begin again at the first."""
_STYLE = (
    "<style>text{font:11.5px sans-serif;fill:#6a6e78}.grid{stroke:#ededea;fill:none}.line,.raw,.reading{fill:none}"
    ".level{stroke:#a3a7b0;stroke-dasharray:4 4;fill:none}.line{stroke-width:2}.raw{opacity:.3}.s0{stroke:#2f6fd0}"
    ".s1{stroke:#e08a2c}.s2{stroke:#24967f}.s3{stroke:#9a62c4}.key{stroke-width:3}</style>"
)


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `y` over the chart's x; NaN leaves a gap. With `low` and `high`, a band lies around it."""

    label: str
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Axes:
    """The frame of a chart: labels with units, and limits where they are not the data's."""

    x_label: str
    y_label: str
    low: float | None = None
    high: float | None = None
    percent: bool = False
    decades: bool = False
    """Values are decimal logarithms: 1e-6 stands at -6."""


def chart(
    x: Sequence[float],
    series: Sequence[Series],
    axes: Axes,
    stacked: bool = False,
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """An SVG of lines over `x`; beyond 30 points a faint line is the data and a strong one its moving mean. Or, where
    `stacked`, of areas on top of each other, the first at the bottom. `levels` are values to compare with, each with
    its name. Values are shown where the pointer is.
    """
    known = [i for i, value in enumerate(x) if math.isfinite(value)]
    edges = [edge for entry in series if entry.low for edge in (entry.low, entry.high)]
    wanted = [_held([line[i] for i in known]) for line in [*(entry.y for entry in series), *edges]]
    x, values = _thin([x[i] for i in known], wanted)
    values, edges = values[: len(series)], values[len(series) :]
    tops = [[sum(column) for column in zip(*values, strict=True)]] if stacked else values
    finite = [value for line in [*tops, *edges] for value in line if math.isfinite(value)]
    finite += [value for _, value in levels if finite]
    if not finite:
        return '<p class="missing">No values yet.</p>'
    low = axes.low if axes.low is not None else min(finite)
    high = axes.high if axes.high is not None else max(finite)
    low, high = _apart(low, high)
    low = max(low, axes.low) if axes.low is not None else low
    grid = ticks(low, high)
    if axes.high is None and grid[-1] < high:
        high += (high - low) * 0.04
    scale = _Scale(x[0], x[-1], low, high)
    label = escape(f"{axes.y_label} over {axes.x_label}")
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">',
        *_frame(scale, axes, grid),
        *_bands(x, [i for i, entry in enumerate(series) if entry.low], edges, scale),
        *_levels(levels, scale),
        (_areas if stacked else _lines)(x, values, scale),
        *_readings(x, series, values, axes, scale),
        "</svg>",
    ]
    return "".join(parts)


def standalone_chart(
    x: Sequence[float], series: Sequence[Series], axes: Axes, legend: tuple[int, int] = (300, 130)
) -> str:
    """A `chart` with its own colours and a legend at (x, y), for a file of its own. A long label moves it left."""
    head, _, body = chart(x, series, axes).partition(">")
    left, top = legend
    longest = max((len(entry.label) for entry in series), default=0)
    left = max(0, min(left, WIDTH - 24 - round(2 * _HALF_CHARACTER * longest)))
    keys = "".join(
        f'<path class="key s{i}" d="M{left} {top + 14 * i}h18"/>'
        f'<text x="{left + 24}" y="{top + 4 + 14 * i}">{escape(entry.label)}</text>'
        for i, entry in enumerate(series)
    )
    head += ' xmlns="http://www.w3.org/2000/svg" style="background:#fff">'
    return head + _STYLE + body.removesuffix("</svg>") + keys + "</svg>\n"


def sparkline_svg(y: Sequence[float]) -> str:
    """A line without axes, for a cell of a table."""
    x, (values,) = _thin(range(len(y)), [_held(y)])
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    place = _Scale(x[0], x[-1], *_apart(min(finite), max(finite)), 2, 118, 22, 2)
    return f'<svg class="spark" viewBox="0 0 120 24" aria-hidden="true">{_path(x, values, place, "line s0")}</svg>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, about `count` steps of 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.8)
    first = math.ceil(low / step - 1e-9)
    # Twelve digits: what is left of the step's rounding is cut off.
    return [float(f"{step * i:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def moving_mean(y: Sequence[float], window: int) -> list[float]:
    """The mean of a centred window, smaller at the ends; NaN entries are left out of it."""
    half = window // 2
    means: list[float] = []
    for i in range(len(y)):
        # An equal reach to both sides, so that the ends do not lag.
        reach = min(half, i, len(y) - 1 - i)
        part = [value for value in y[i - reach : i + reach + 1] if math.isfinite(value)]
        means.append(sum(part) / len(part) if part else math.nan)
    return means


_LARGEST, _SMALLEST = 1e300, 1e-300
"""Beyond them sums and differences of a chart's numbers would overflow, or vanish."""


def _held(y: Sequence[float]) -> list[float]:
    """Numbers that can be drawn: those beyond the largest are drawn as the largest, infinite ones leave a gap."""
    return [min(max(value, -_LARGEST), _LARGEST) if math.isfinite(value) else math.nan for value in y]


def _apart(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis from `low` to `high`, moved apart where nothing, or rounding alone, lies between them."""
    largest = max(abs(low), abs(high))
    if high - low > max(1e-9 * largest, _SMALLEST):
        return low, high
    middle, reach = (low / 2 + high / 2), (0.1 * largest if largest > _SMALLEST else 0.5)
    return middle - reach, middle + reach


_HALF_CHARACTER = 3.4
"""Of a label, so that the last one ends inside the picture."""


@dataclass(frozen=True, slots=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM
    top: float = _TOP

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / ((self.x_high - self.x_low) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - min(1.0, max(0.0, share)) * (self.bottom - self.top)


def _frame(scale: _Scale, axes: Axes, grid: Sequence[float]) -> list[str]:
    parts: list[str] = []
    for value in grid:
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{scale.left} {y:.1f}H{scale.right}"/>')
        text = _reading(value, axes)
        parts.append(f'<text x="{scale.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    if scale.x_high > scale.x_low:
        for value in ticks(scale.x_low, scale.x_high, 5):
            text = _tick(value)
            x = min(scale.x(value), WIDTH - len(text) * _HALF_CHARACTER)
            parts.append(f'<text x="{x:.1f}" y="{scale.bottom + 16}" text-anchor="middle">{text}</text>')
    middle = (scale.left + scale.right) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes.x_label)}</text>')
    return parts


def _reading(value: float, axes: Axes) -> str:
    """A value as the axis writes it."""
    if axes.decades:
        return _tick(10**value) if -3 <= value < 6 else f"{10**value:.2g}".replace("e-0", "e-")
    return f"{value * 100:.4g} %" if axes.percent else _tick(value)


def _levels(levels: Sequence[tuple[str, float]], scale: _Scale) -> list[str]:
    """Dashed lines with their names, above them at the right."""
    return [
        f'<path class="level" d="M{scale.left} {scale.y(value):.1f}H{scale.right}"/>'
        f'<text class="axis" x="{scale.right}" y="{scale.y(value) - 4:.1f}" text-anchor="end">{escape(name)}</text>'
        for name, value in levels
    ]


_READINGS = 120
"""Places where values are shown, at most; a page stays small."""


def _readings(
    x: Sequence[float], series: Sequence[Series], values: Sequence[Sequence[float]], axes: Axes, scale: _Scale
) -> list[str]:
    """Invisible columns that say the values where the pointer is."""
    step = -(-len(x) // _READINGS)
    width = step * (scale.right - scale.left) / max(len(x), 1)
    parts: list[str] = []
    for i in range(0, len(x), step):
        said = [
            f"{entry.label}: {_reading(line[i], axes)}"
            for entry, line in zip(series, values, strict=True)
            if math.isfinite(line[i])
        ]
        if said:
            title = escape(f"{axes.x_label} {_tick(round(x[i], 2))}, {', '.join(said)}")
            left = min(max(scale.x(x[i]) - width / 2, scale.left), scale.right - width)
            height = scale.bottom - scale.top
            parts.append(
                f'<rect class="reading" x="{left:.1f}" y="{scale.top}" width="{width:.1f}" height="{height}">'
                f"<title>{title}</title></rect>"
            )
    return parts


def _lines(x: Sequence[float], values: Sequence[Sequence[float]], scale: _Scale) -> str:
    parts: list[str] = []
    for i, line in enumerate(values):
        if len(line) > 30:
            parts.append(_path(x, line, scale, f"raw s{i % COLORS}"))
            line = moving_mean(line, max(5, len(line) // 20))
        parts.append(_path(x, line, scale, f"line s{i % COLORS}"))
        if len(line) == 1:
            parts.append(
                f'<circle class="dot s{i % COLORS}" cx="{scale.x(x[0]):.1f}" cy="{scale.y(line[0]):.1f}" r="3"/>'
            )
    return "".join(parts)


def _bands(x: Sequence[float], places: Sequence[int], edges: Sequence[Sequence[float]], scale: _Scale) -> list[str]:
    """The bands of lines, smoothed as they are; `edges` are the lower and upper edge of each."""
    parts: list[str] = []
    for place, low, high in zip(places, edges[::2], edges[1::2], strict=True):
        if len(low) > 30:
            window = max(5, len(low) // 20)
            low, high = moving_mean(low, window), moving_mean(high, window)
        known = [i for i, value in enumerate(low) if math.isfinite(value) and math.isfinite(high[i])]
        edge = [f"{scale.x(x[i]):.1f} {scale.y(high[i]):.1f}" for i in known]
        back = [f"{scale.x(x[i]):.1f} {scale.y(low[i]):.1f}" for i in reversed(known)]
        if known:
            parts.append(f'<path class="band s{place % COLORS}" d="M{"L".join(edge + back)}Z"/>')
    return parts


def _areas(x: Sequence[float], values: Sequence[Sequence[float]], scale: _Scale) -> str:
    parts: list[str] = []
    below = [0.0] * len(x)
    for i, line in enumerate(values):
        above = [base + (value if math.isfinite(value) else 0.0) for base, value in zip(below, line, strict=True)]
        edge = [f"{scale.x(a):.1f} {scale.y(b):.1f}" for a, b in zip(x, above, strict=True)]
        back = [f"{scale.x(a):.1f} {scale.y(b):.1f}" for a, b in zip(x, below, strict=True)]
        parts.append(f'<path class="area s{i}" d="M{"L".join(edge + back[::-1])}Z"/>')
        below = above
    return "".join(parts)


def _path(x: Sequence[float], y: Sequence[float], scale: _Scale, kind: str) -> str:
    steps: list[str] = []
    pen = "M"
    for a, b in zip(x, y, strict=True):
        if math.isfinite(b):
            steps.append(f"{pen}{scale.x(a):.1f} {scale.y(b):.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return f'<path class="{kind}" d="{"".join(steps)}"/>'


def _thin(x: Sequence[float], lines: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """At most `_MAX_POINTS` points, each the mean of an equal part, so that a long run has a small page."""
    if len(x) <= _MAX_POINTS:
        return list(x), [list(line) for line in lines]
    cuts = [len(x) * i // _MAX_POINTS for i in range(_MAX_POINTS + 1)]

    def means(line: Sequence[float]) -> list[float]:
        parts = ([v for v in line[a:b] if math.isfinite(v)] for a, b in pairwise(cuts))
        return [sum(part) / len(part) if part else math.nan for part in parts]

    return means(x), [means(line) for line in lines]


def _tick(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.6g}"
