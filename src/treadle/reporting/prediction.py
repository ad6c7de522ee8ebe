"""The time of an iteration as a plan predicted it, beside the measured one."""

import math
from collections.abc import Sequence
from html import escape
from statistics import median

from treadle.reporting.folder import RunFolder

_FILLING = 2
"""First iterations, in which memory is allocated and a pipeline fills."""


def predicted_line(run: RunFolder) -> str:
    """A sentence, empty for a run without a prediction."""
    if run.prediction is None:
        return ""
    predicted = float(run.prediction["seconds"])
    said = f"Predicted: {predicted:.3g} s an iteration, bound by {escape(str(run.prediction['bound']))}"
    if (measured := measured_seconds(run.series("time/iteration"))) is not None:
        off = predicted / measured - 1
        said += f". Measured: {measured:.3g} s, the median; the prediction is {abs(off):.0%} too {_way(off)}"
    return f'<p class="note">{said}. Profile: {escape(str(run.prediction["source"]))}.</p>'


def measured_seconds(iterations: Sequence[float]) -> float | None:
    """The median over iterations, less the first ones; None before there are any."""
    counted = [seconds for seconds in iterations[_FILLING:] if math.isfinite(seconds)]
    return median(counted) if counted else None


def _way(off: float) -> str:
    return "long" if off > 0 else "short"
