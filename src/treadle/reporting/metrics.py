"""The numbers of each iteration: JSON lines for programs, TensorBoard for people."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from treadle.errors import OutputError
from treadle.files import cannot_write, to_json, write_atomically
from treadle.reading import parse_json, read_bytes

# The generated modules build their classes at import, where a type checker cannot see them.
_event = cast("Any", event_pb2)
_summary = cast("Any", summary_pb2)

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends one line per iteration to `metrics.jsonl`, and the same numbers to `tensorboard/`.

    `resume_at` is the last iteration that the checkpoint holds: later lines, which the resumed run writes again, are
    dropped from the file before anything is appended, and TensorBoard is told to forget them.
    Raises OutputError, on opening or writing, where the folder cannot be written.
    """

    def __init__(self, run_dir: Path, resume_at: int | None = None) -> None:
        self._path = run_dir / METRICS_FILE
        try:
            if resume_at is not None and self._path.exists():
                kept = [to_json(row, indent=None) for row in read_metrics(run_dir) if row["iteration"] <= resume_at]
                write_atomically(self._path, "".join(line + "\n" for line in kept))
            board = run_dir / "tensorboard"
            board.mkdir(parents=True, exist_ok=True)
            # Files are read in the order of their names; nanoseconds keep a quick resume after what it resumes.
            self._board_path = board / f"events.out.tfevents.{time.time_ns()}"
            self._lines = self._path.open("a", encoding="utf-8")
            self._board = RecordWriter(self._board_path.open("wb"))
            self._add_event(file_version="brain.Event:2")
            if resume_at is not None:
                start = _event.SessionLog(status=_event.SessionLog.START)
                self._add_event(step=resume_at + 1, session_log=start)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def write(self, metrics: Mapping[str, float]) -> None:
        """Append the numbers of one iteration, which is `metrics["iteration"]`. NaN and infinity become null."""
        values = [_summary.Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        step, summary = int(metrics["iteration"]), _summary.Summary(value=values)
        try:
            self._lines.write(to_json({key: _plain(value) for key, value in metrics.items()}, indent=None) + "\n")
            self._lines.flush()
            self._add_event(step=step, summary=summary)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close both files."""
        try:
            self._lines.close()
            self._board.close()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_event(self, **fields: Any) -> None:
        self._board.write(_event.Event(wall_time=time.time(), **fields).SerializeToString())
        self._board.flush()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run, one per iteration; null reads as NaN, and a line cut short by a crash is left out.

    Raises OutputError where there is no metrics file, or a line of it is not JSON.
    """
    path = run_dir / METRICS_FILE
    if not path.exists():
        raise OutputError(
            f"{path}: no metrics here; give the folder of a run, which holds {METRICS_FILE} after its first iteration"
        )
    lines = read_bytes(path, OutputError, most=2**32).decode("utf-8", errors="replace").split("\n")
    rows: list[dict[str, float]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_row(parse_json(line, path, OutputError)))
        except (OutputError, ValueError) as error:
            if number == len(lines):
                break
            raise OutputError(
                f"{path}, line {number}: not a JSON object of numbers with an 'iteration'; mend or delete the line"
            ) from error
    return rows


def _row(found: Any) -> dict[str, float]:
    """The numbers of a line. Raises ValueError for anything else."""
    if not isinstance(found, dict) or not all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in cast("dict[str, Any]", found).values()
    ):
        raise ValueError("not an object of numbers")
    row = {key: math.nan if value is None else float(value) for key, value in cast("dict[str, Any]", found).items()}
    if not (0 <= row.get("iteration", math.nan) < 2**53 and row["iteration"] % 1 == 0):
        raise ValueError("no iteration")
    return row


def _plain(value: float) -> float:
    # NumPy and torch scalars are not JSON; whole numbers stay whole.
    number = value if isinstance(value, int) else float(value)
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number
