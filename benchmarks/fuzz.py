"""Readers of files against what Hypothesis makes up: they read it, or raise a named error.

`python -m benchmarks.fuzz --minutes 30`.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer import echo

from treadle.config.loading import load_recipe
from treadle.config.schema import TrainConfig
from treadle.data.lerobot_info import read_info
from treadle.errors import TreadleError
from treadle.policies.load import examine_policy
from treadle.policies.tensors import load_plain
from treadle.reporting.folder import read_run
from treadle.serving.observations import read_observation
from treadle.serving.packing import unpack

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
VALUES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=12), x, max_size=4))


def readers(folder: Path) -> dict[str, tuple[Path, Callable[[], Any], dict[str, Any]]]:
    """By name: a file, what reads it, and a document that it could hold."""
    recipe, info = folder / "recipe.json", folder / "data" / "meta" / "info.json"
    message = folder / "message.bin"
    config, run = folder / "policy" / "config.json", folder / "run" / "config.json"
    return {
        "recipe": (recipe, lambda: load_recipe(str(recipe)), json.loads(TrainConfig().model_dump_json())),
        "data set": (info, lambda: read_info(folder / "data"), {"codebase_version": "v3.0", "fps": 10, "features": {}}),
        "policy": (config, lambda: examine_policy(folder / "policy"), {"model_type": "openvla", "text_config": {}}),
        "run": (run, lambda: read_run(folder / "run"), json.loads(TrainConfig().model_dump_json())),
        "message": (message, lambda: read_observation(unpack(message.read_bytes()), []), {}),
        "tensors": (folder / "part.pt", lambda: load_plain(folder / "part.pt"), {}),
    }


def fuzz(path: Path, read: Callable[[], Any], document: dict[str, Any], seconds: float) -> int:
    """How many inputs were tried in so many seconds of own time. Raises whatever is not a named error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, end = 0, time.process_time() + seconds

    def attempt(content: bytes) -> None:
        nonlocal count
        count += 1
        path.write_bytes(content)
        with suppress(TreadleError):
            read()

    keys = st.sampled_from(sorted(document) or ["a"])

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.dictionaries(keys | st.text(max_size=8), VALUES, max_size=5), st.binary(max_size=200), st.booleans())
    def one(values: dict[str, Any], raw: bytes, as_json: bool) -> None:
        attempt(json.dumps(document | values).encode() if as_json else raw)

    while time.process_time() < end:
        one()
    return count


def main() -> None:
    """Give every reader its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the processor's time")
    # What a reader makes of a document that it reads is told thousands of times.
    logging.disable(logging.WARNING)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="treadle-fuzz-") as folder:
        known = readers(Path(folder))
        for name, (path, read, document) in known.items():
            echo(f"{name}: {fuzz(path, read, document, 60 * minutes / len(known))} inputs")


if __name__ == "__main__":
    main()
