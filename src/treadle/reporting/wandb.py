"""Weights & Biases: the numbers of each iteration, and the configuration, sent to where the user's account is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from treadle.errors import ConfigError
from treadle.files import write_atomically
from treadle.plugins import import_extra

PROJECT = "treadle"
"""Where WANDB_PROJECT names no other."""


class WandbWriter:
    """Logs rows as `metrics.jsonl` has them, over the iteration; a resumed run goes on in the same curves.

    Raises ConfigError where the package is missing, or nobody is logged in.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        wandb: Any = import_extra("wandb", "wandb", "wandb=true")
        folder = run_dir / "wandb"
        known = folder / "run-id"
        if not known.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(known, uuid4().hex[:12])
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=str(config.get("name", run_dir.name)),
                id=known.read_text().strip(),
                resume="allow",
                dir=str(run_dir),
                config=dict(config),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"wandb: W&B refuses: {str(error).rstrip('.')}; log in with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._end = wandb.teardown
        # Not over W&B's own count of rows, which never goes back, as a resumed run does.
        self._run.define_metric("*", step_metric="iteration")

    @property
    def place(self) -> str:
        """Where to look, or what to do to look there."""
        return str(self._run.url) if self._run.url else f"wandb sync {Path(self._run.dir).parent}"

    def write(self, metrics: Mapping[str, float]) -> None:
        """Send the numbers of one iteration."""
        self._run.log(dict(metrics))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
        # Its service would live as long as this process.
        self._end()
