"""Episodes of an evaluation, kept line by line while they are played, so that one that was cut short goes on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from treadle.config.section import Natural
from treadle.data.scenario import Scenario
from treadle.data.step import EpisodeResult
from treadle.errors import OutputError
from treadle.files import cannot_write, to_json, write_atomically
from treadle.reading import read_bytes
from treadle.tables import LooseTable

EPISODES_FILE = "episodes.jsonl"
MOST_EPISODES = 1 << 31
"""Bytes; a million episodes have a third of that."""

Episodes = dict[str, dict[int, EpisodeResult]]
"""By the suite that was asked for, and by number: with n scenarios, repeat r of scenario i has number r * n + i."""


class _Row(LooseTable):
    suite: str
    number: Natural
    scenario: Scenario
    success_once: bool
    success_at_end: bool
    episode_return: float
    length: Natural


class EpisodeFile:
    """`episodes.jsonl` of one evaluation. Each line is written when its episode ends.

    Args:
        path: the file, which may be there from an earlier call; None keeps episodes in memory alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.episodes: Episodes = {} if path is None else read_episodes(path)

    @contextmanager
    def appending(self) -> Iterator["EpisodeFile"]:
        """Open the file; a line that was cut short is dropped first. Raises OutputError."""
        if self._path is None:
            yield self
            return
        lines = [line(suite, n, result) for suite, of in self.episodes.items() for n, result in of.items()]
        write_atomically(self._path, "".join(lines))
        try:
            file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise cannot_write(self._path, error) from error
        with file:
            self._file = file
            yield self

    def add(self, suite: str, number: int, result: EpisodeResult) -> None:
        """Keep an episode. Raises OutputError."""
        self.episodes.setdefault(suite, {})[number] = result
        if self._path is None:
            return
        assert self._file is not None, "the file is open while `appending`"
        try:
            self._file.write(line(suite, number, result))
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error


def line(suite: str, number: int, result: EpisodeResult) -> str:
    """An episode as a line of JSON."""
    values = asdict(result)
    del values["slot"]
    return to_json({"suite": suite, "number": number, **values}, indent=None) + "\n"


def write_episodes(path: Path, episodes: Mapping[str, Mapping[int, EpisodeResult]]) -> None:
    """Write all episodes at once. Raises OutputError."""
    lines = [line(suite, number, result) for suite, of in episodes.items() for number, result in of.items()]
    write_atomically(path, "".join(lines))


def read_episodes(path: Path) -> Episodes:
    """The episodes of a file, by suite and number; none where there is no file. A last line that was cut short is left
    out. Raises OutputError for another line that is none.
    """
    if not path.exists():
        return {}
    lines = read_bytes(path, OutputError, MOST_EPISODES).decode("utf-8", errors="replace").split("\n")
    found: Episodes = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row = _Row.model_validate_json(text)
        except ValidationError as error:
            if number == len(lines):
                break
            raise OutputError(
                f"{path}, line {number}: not an episode; delete the line, and it is played again"
            ) from error
        result = EpisodeResult(row.scenario, row.success_once, row.success_at_end, row.episode_return, row.length)
        found.setdefault(row.suite, {})[row.number] = result
    return found
