"""Numbers of a supervised run: what steps report becomes lines of metrics."""

import time
from collections.abc import Callable, Mapping, Sequence

from treadle.reporting.console import RunConsole
from treadle.reporting.metrics import MetricsWriter

REPORT_EVERY = 50
"""Steps between two lines of metrics."""


class Progress:
    """Counts steps over all stages, and turns what they report into metrics.

    `before` are the lines of metrics of stages that an earlier call finished.
    """

    def __init__(self, console: RunConsole, writer: MetricsWriter, before: Sequence[Mapping[str, float]] = ()) -> None:
        self._console, self._writer = console, writer
        self._start = time.perf_counter() - (before[-1]["seconds"] if before else 0.0)
        self._lines = len(before)

    def report(self, stage: str, *names: str) -> Callable[..., None]:
        """A callback that averages what it is given and writes it every few steps."""
        sums: list[float] = []

        def add(step: int, *values: float | Sequence[float]) -> None:
            nonlocal sums
            flat = [x for value in values for x in (value if isinstance(value, Sequence) else (value,))]
            sums = [a + b for a, b in zip(sums or [0.0] * len(flat), flat, strict=True)]
            if (step + 1) % REPORT_EVERY == 0:
                self._lines += 1
                metrics = {"iteration": self._lines, "seconds": time.perf_counter() - self._start}
                metrics |= {f"{stage}/{name}": x / REPORT_EVERY for name, x in zip(names, sums, strict=False)}
                self._writer.write(metrics)
                self._console.iteration(metrics)
                sums = []

        return add
