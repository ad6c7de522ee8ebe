"""The seeds of scenes: those of a file, or counted up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from treadle.data.scenario import Split
from treadle.errors import ConfigError

COUNTED: dict[Split, range] = {"train": range(100_000, 200_000), "evaluation": range(300_000, 400_000)}
"""Seeds where there is no file."""


def read_seeds(split: Split, file: str | None, tasks: Sequence[str]) -> Mapping[str, Sequence[int]]:
    """The seeds of each task: of the published form `{task: {"success_seeds": [...]}}`, or counted up without a file.

    Raises ConfigError for a file that cannot be used, or that lacks a task.
    """
    if file is None:
        return dict.fromkeys(tasks, COUNTED[split])
    key = f"simulator.options.{split}_seeds"
    try:
        found: Any = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {file}: {error}; name a JSON file of seeds, or leave it out") from error
    return {task: _seeds_of(key, file, found, task) for task in tasks}


def _seeds_of(key: str, file: str, found: Any, task: str) -> list[int]:
    entry = found.get(task) if isinstance(found, dict) else None
    seeds = entry.get("success_seeds") if isinstance(entry, dict) else None
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        tasks = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise ConfigError(
            f'{key}: {file} holds no {{"{task}": {{"success_seeds": [whole numbers]}}}}; it holds: {tasks or "nothing"}'
        )
    return list(dict.fromkeys(seeds))
