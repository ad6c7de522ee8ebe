"""What a person watches while a run goes on."""

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from treadle.reporting.summary import RunSummary

_SPARKS = "▁▂▃▄▅▆▇█"
_ROLES = (("simulate", "cyan"), ("generate", "blue"), ("update", "magenta"), ("critic", "yellow"))
_LINE_SECONDS = 10.0
_REFRESHES_PER_SECOND = 2
_NAMES = {"in_distribution": "in distribution"}


class RunConsole:
    """A live panel on a terminal; where there is none (CI, pipes), a plain line now and then.

    `iterations` is the number of the last iteration; they count from 1.
    """

    def __init__(self, name: str, iterations: int, console: Console | None = None) -> None:
        self._console = console if console is not None else Console()
        self._view = _RunView(name, iterations)
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                self._view, console=self._console, auto_refresh=True, refresh_per_second=_REFRESHES_PER_SECOND
            )
        self._last_line = -_LINE_SECONDS
        self._iterations = iterations

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        """Say what goes on now, as in `evaluating base: vision`."""
        self._view.begin(text)
        self._line(text)

    def progress(self, done: int, total: int) -> None:
        """How far the stage is, where it is not training: episodes, batches."""
        self._view.progress = (done, total)
        if done >= total or self._line_is_due():
            self._line(f"{self._view.stage} {done}/{total}")

    def iteration(self, metrics: Mapping[str, float]) -> None:
        """Show the numbers of an iteration that has ended; the keys are those of `metrics.jsonl`."""
        self._view.add(metrics)
        if self._view.is_first or metrics["iteration"] >= self._iterations or self._line_is_due():
            self._line(self._view.line())

    def message(self, text: str) -> None:
        """A line that stays, above the panel."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def finish(self, summary: RunSummary, report_path: Path) -> None:
        """End the panel, and print success before and after."""
        if self._live is not None:
            self._live.stop()
        self._console.print(_closing_table(summary))
        minutes = sum(summary.seconds.values()) / 60
        self.message(
            f"{minutes:.1f} minutes, {summary.env_steps:,} control steps of training, "
            f"{summary.peak_rss_mb:,.0f} MB of memory at most"
        )
        self.message(f"report: {report_path}")

    def _line_is_due(self) -> bool:
        return time.monotonic() - self._last_line >= _LINE_SECONDS

    def _line(self, text: str) -> None:
        if self._live is None:
            self._last_line = time.monotonic()
            self.message(f"[{clock(self._view.elapsed())}] {text}")


class _RunView:
    """The state of the panel, drawn by rich's refresh thread."""

    def __init__(self, name: str, iterations: int) -> None:
        self.stage = "starting"
        self.progress: tuple[int, int] | None = None
        self.is_first = False
        self._name = name
        self._iterations = iterations
        self._start = time.monotonic()
        self._success: list[float] = []
        self._metrics: dict[str, float] = {}
        # Pairs of clock and iteration; recent ones say most about the time left.
        self._ends: deque[tuple[float, float]] = deque(maxlen=20)

    def begin(self, stage: str) -> None:
        self.stage, self.progress = stage, None

    def add(self, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        self.is_first = not self._metrics
        self._metrics = dict(metrics)
        if self.is_first and "time/iteration" in metrics:
            self._ends.append((now - metrics["time/iteration"], metrics["iteration"] - 1))
        self._ends.append((now, metrics["iteration"]))
        if "rollout/success" in metrics:
            self._success.append(metrics["rollout/success"])

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def seconds_left(self) -> float | None:
        """Of training, from the pace of the last iterations."""
        if len(self._ends) < 2:
            return None
        (first, begin), (last, end) = self._ends[0], self._ends[-1]
        pace = (last - first) / max(end - begin, 1)
        return max(0.0, (self._iterations - end) * pace - (time.monotonic() - last))

    def line(self) -> str:
        """The iteration in one line of plain ASCII."""
        numbers = [f"iteration {self._metrics['iteration']:.0f}/{self._iterations}"]
        numbers += [f"{label} {text}" for label, text in self._numbers()]
        left = self.seconds_left()
        if left is not None:
            numbers.append(f"left {clock(left)}")
        return "  ".join(numbers)

    def __rich__(self) -> RenderableType:
        rows: list[RenderableType] = [self._head()]
        if self._metrics:
            rows += [Text(), self._body()]
        return Panel(
            Group(*rows), title=f"treadle [b]{Text(self._name).markup}", title_align="left", padding=(1, 2), width=84
        )

    def _head(self) -> RenderableType:
        done = self._metrics["iteration"] if self._metrics else 0
        left = self.seconds_left()
        detail = f" {self.progress[0]}/{self.progress[1]}" if self.progress else ""
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(justify="right")
        grid.add_row(Text(self.stage + detail, style="bold", overflow="ellipsis", no_wrap=True), clock(self.elapsed()))
        ending = "" if left is None or done >= self._iterations else f" {clock(left)} left"
        grid.add_row(ProgressBar(total=self._iterations, completed=done), f"{done:.0f}/{self._iterations}{ending}")
        return grid

    def _body(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True, min_width=7)
        grid.add_column(no_wrap=True)
        for label, text in self._numbers():
            value = Text(text)
            if label == "success":
                value.stylize("bold green")
                value.append("  " + sparkline(self._success, 40), style="green")
            grid.add_row(label, value)
        seconds = [(role, color, self._metrics.get(f"time/{role}", 0.0)) for role, color in _ROLES]
        if total := sum(entry[2] for entry in seconds):
            grid.add_row("time", _share_bar([(role, color, s / total) for role, color, s in seconds if s > 0]))
        return grid

    def _numbers(self) -> list[tuple[str, str]]:
        formats = (
            ("success", "rollout/success", "{:.1%}"),
            ("return", "rollout/return", "{:.2f}"),
            ("speed", "speed/control_steps_per_second", "{:,.0f} steps/s"),
            ("KL", "update/approximate_kl", "{:.4f}"),
        )
        return [(label, form.format(self._metrics[key])) for label, key, form in formats if key in self._metrics]


def sparkline(values: list[float], width: int) -> str:
    """The history of a share, 0 to 1, in at most `width` characters, each the mean of an equal part."""
    count = min(width, len(values))
    parts = [values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    # A value that is not a number leaves a gap.
    return "".join(_SPARKS[round(min(1.0, max(0.0, mean)) * 7)] if mean == mean else " " for mean in means)


def _share_bar(shares: list[tuple[str, str, float]]) -> Text:
    bar = Text()
    for _, color, share in shares:
        bar.append("█" * max(1, round(14 * share)), style=color)
    for role, color, share in shares:
        bar.append(f"  {role} ", style=color)
        bar.append(f"{share:.0%}")
    return bar


def _closing_table(summary: RunSummary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="success, with 95 % intervals", title_justify="left", title_style="bold")
    table.add_column("suite")
    for heading in ("base", "final", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for suite in dict.fromkeys([*summary.base, *summary.final]):
        base, final = summary.base.get(suite), summary.final.get(suite)
        cells = [f"{r.success:.1%}  {r.ci95[0]:.0%} to {r.ci95[1]:.0%}" if r else "not measured" for r in (base, final)]
        change = f"{(final.success - base.success) * 100:+.1f}" if base and final else ""
        table.add_row(Text(_NAMES.get(suite, suite)), *cells, change)
    return table


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
