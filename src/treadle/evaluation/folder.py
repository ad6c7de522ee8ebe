"""The folder of an evaluation: its manifest, episodes, tables and films.

| file | what |
|---|---|
| `manifest.json` | all that the figures depend on, and the figures |
| `episodes.jsonl` | a line for each episode, written as it ends |
| `result.json` | the tables |
| `videos/` | films of failures and successes |
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.config.run_directory import lock_directory
from treadle.config.section import Natural
from treadle.data.step import EpisodeResult
from treadle.errors import OutputError
from treadle.evaluation.episodes import EPISODES_FILE, EpisodeFile, Episodes
from treadle.evaluation.manifest import Manifest, identity
from treadle.evaluation.statistics import Rule, succeeded
from treadle.files import cannot_write, to_json, write_atomically
from treadle.reading import read_json
from treadle.reporting.folder import read_report
from treadle.reporting.video import caption, write_video
from treadle.tables import LooseTable, read_table

_log = logging.getLogger(__name__)

MANIFEST_FILE, RESULT_FILE, VIDEOS = "manifest.json", "result.json", "videos"


class _Film(LooseTable):
    file: str
    suite: str
    scenario: str
    instruction: str
    success: bool
    length: Natural


class _Films(LooseTable):
    videos: list[_Film]


class EvaluationFolder:
    """Where the episodes of one evaluation are kept; without a path, in memory alone.

    Args:
        path: the folder, or None.
        file: its episodes, open for more.
    """

    def __init__(self, path: Path | None, file: EpisodeFile) -> None:
        self.path = path
        self.add = file.add
        self.episodes: Episodes = file.episodes

    @classmethod
    @contextmanager
    def open(
        cls, output: Path | None, name: str, made: Manifest, fresh: bool = False
    ) -> Generator["EvaluationFolder", None, None]:
        """The folder of an evaluation with this manifest, inside `output`, kept to this process while the block lasts.
        `fresh` passes over folders whose evaluation is complete, and takes one beside them.

        Raises OutputError where it cannot be written, or is in use.
        """
        if output is None:
            yield cls(None, EpisodeFile(None))
            return
        path = first = folder_path(output, name, made)
        again = 2
        while fresh and is_complete(path):
            path = first.with_name(f"{first.name}-{again}")
            again += 1
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from error
        with lock_directory(path, _log.warning, "--output"):
            file = EpisodeFile(path / EPISODES_FILE)
            with file.appending():
                if not (path / MANIFEST_FILE).exists():
                    write_atomically(path / MANIFEST_FILE, to_json(made) + "\n")
                yield cls(path, file)

    @property
    def count(self) -> int:
        """Episodes that were played."""
        return sum(map(len, self.episodes.values()))

    @property
    def has_films(self) -> bool:
        """Films were made already."""
        return self.path is not None and (self.path / VIDEOS / "videos.json").exists()

    def write(self, report: dict[str, Any]) -> None:
        """Write the tables, and the manifest with them. Raises OutputError."""
        if self.path is not None:
            write_atomically(self.path / RESULT_FILE, to_json(report) + "\n")
            manifest = report["manifest"] | {"complete": report["complete"], "suites": report["suites"]}
            write_atomically(self.path / MANIFEST_FILE, to_json(manifest) + "\n")

    def write_films(
        self, films: Sequence[tuple[str, EpisodeResult, NDArray[np.uint8]]], rule: Rule, control_hz: float
    ) -> None:
        """Write films, each of a suite's episode. Raises OutputError."""
        assert self.path is not None, "films need a folder"
        entries: list[dict[str, Any]] = []
        for suite, result, frames in films:
            success = succeeded(result, rule)
            name = f"{'success' if success else 'failure'}-{len(entries)}.mp4"
            write_video(self.path / VIDEOS / name, caption(frames, result.scenario.instruction, success), control_hz)
            entries.append(
                {
                    "file": name,
                    "suite": suite,
                    "scenario": result.scenario.id,
                    "instruction": result.scenario.instruction,
                    "success": success,
                    "length": result.length,
                }
            )
        write_atomically(self.path / VIDEOS / "videos.json", to_json(entries) + "\n")


def folder_path(output: Path, name: str, made: Manifest) -> Path:
    """The folder of the evaluation with this manifest, inside `output`. Raises OutputError for a name that is none."""
    if not name or Path(name).name != name:
        raise OutputError(f"found {name!r}, allowed is the name of one folder, made inside {output}")
    return output / f"{name}-{identity(made)}"


def is_complete(path: Path) -> bool:
    """Whether a folder has an evaluation all of whose episodes were played. Raises OutputError."""
    result = read_report(path / RESULT_FILE)
    return result is not None and result.get("complete", True)


def read_videos(path: Path) -> list[dict[str, Any]]:
    """What was filmed, in the folder of an evaluation. Raises OutputError."""
    file = path / VIDEOS / "videos.json"
    if not file.exists():
        return []
    found = read_json(file, OutputError)
    read_table(_Films, {"videos": found}, file, error=OutputError)
    return found
