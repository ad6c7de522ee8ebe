"""The curve of a supervised run: how perception and imitation learned."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from treadle.files import write_atomically
from treadle.reporting.plots import Axes, Series, standalone_chart

ERRORS = {
    "detection/object_error": "object, towers alone",
    "detection/plate_error": "plate, towers alone",
    "grounding/object_error": "named object",
    "grounding/plate_error": "named plate",
}
"""Metrics in metres, and what they are of."""
_HIGHEST_ERROR = 30.0
"""Millimetres; the first guesses lie far above and would flatten the rest."""


def write_curves(run: Path, rows: Sequence[Mapping[str, float]]) -> list[Path]:
    """Draw the position errors of the perception stages (`perception.svg`) and the loss of imitation
    (`imitation.svg`) over minutes, those that the run has; returns what was written.
    """
    minutes = [row["seconds"] / 60 for row in rows]
    errors = [
        Series(label, [1000 * row.get(key, float("nan")) for row in rows])
        for key, label in ERRORS.items()
        if any(key in row for row in rows)
    ]
    loss = [Series("cross-entropy", [row.get("imitation/loss", float("nan")) for row in rows])]
    charts = {
        "perception": (errors, Axes("minutes", "error in mm", low=0.0, high=_HIGHEST_ERROR), (160, 30)),
        "imitation": (loss, Axes("minutes", "nats per token"), (300, 30)),
    }
    written: list[Path] = []
    for name, (series, axes, legend) in charts.items():
        known = [i for i in range(len(rows)) if any(entry.y[i] == entry.y[i] for entry in series)]
        if not known:
            continue
        cut = [Series(entry.label, [entry.y[i] for i in known]) for entry in series]
        path = run / f"{name}.svg"
        write_atomically(path, standalone_chart([minutes[i] for i in known], cut, axes, legend))
        written.append(path)
    return written
