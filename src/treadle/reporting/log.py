"""What went wrong and was mended in a run: a line in `run.log`, and on the console."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Self

from treadle.errors import OutputError
from treadle.files import cannot_write
from treadle.reading import read_text

LOG_FILE = "run.log"
_LINE = re.compile(r"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) (.*)$", re.MULTILINE)
_MOST = 200
"""Warnings that a report lists."""


def read_warnings(run_dir: Path) -> list[str]:
    """The latest lines of a run's log, in order, without their times. Raises OutputError."""
    path = run_dir / LOG_FILE
    return _LINE.findall(read_text(path, OutputError))[-_MOST:] if path.exists() else []


class RunLog(logging.Handler):
    """Takes in what Treadle logs while it is open, warnings and worse; a resumed run appends.

    Raises OutputError where the file cannot be written.
    """

    def __init__(self, run_dir: Path, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._path = run_dir / LOG_FILE
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, and show it."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self.format(record) + "\n")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._show(f"{record.levelname.lower()}: {record.getMessage()}")

    def __enter__(self) -> Self:
        logging.getLogger("treadle").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("treadle").removeHandler(self)
