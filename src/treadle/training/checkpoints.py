"""Checkpoints of a run: the policy as a Hugging Face directory, and beside it the state that a resumed run needs."""

import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from treadle.errors import CheckpointError, OutputError
from treadle.policies.protocol import Policy

TRAINER = "trainer.pt"
UNFINISHED = ".saving-"
"""Prefix of a folder that is being written; a killed run may leave one."""
FORMAT = 2
"""The format of a trainer's state. It counts up when older runs can no longer be resumed."""
KEEP = 2
"""How many of the latest checkpoints stay on disk."""


def save_checkpoint(directory: Path, iteration: int, policy: Policy, state: dict[str, Any]) -> Path:
    """Write `directory/iteration-NNNNNN`, whole or not at all, and drop all but the last few.

    Raises:
        OutputError: The folder cannot be written, or the disk is full; earlier checkpoints are as they were.
    """
    target = directory / f"iteration-{iteration:06d}"
    temporary: Path | None = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left)
        temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=directory))
        policy.save(temporary / "policy", merge=False)
        torch.save({"format": FORMAT, "iteration": iteration, **state}, temporary / TRAINER)
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        raise OutputError(
            f"{target}: cannot save the checkpoint ({error}); free space or choose another output="
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
    for old in list_checkpoints(directory)[:-KEEP]:
        shutil.rmtree(old)
    return target


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints from the oldest to the latest."""
    return sorted(directory.glob("iteration-*"))


def load_trainer(checkpoint: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` was given, and `iteration`. Only tensors and plain data are unpickled.

    Raises:
        CheckpointError: The file is missing or corrupt.
    """
    path = checkpoint / TRAINER
    try:
        # torch would take a file of another kind for its old format, and fail in many different ways.
        if zipfile.is_zipfile(path):
            return _current(torch.load(path, map_location="cpu", weights_only=True), checkpoint)
        reason = f"it is cut short or of another kind, {path.stat().st_size} bytes"
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
    raise CheckpointError(f"{path}: cannot be read ({reason}); remove {checkpoint} to resume from the one before")


def _current(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Raises CheckpointError for the state of another version of Treadle."""
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint / TRAINER}: found format {state.get('format', 1)}, this version of Treadle goes on from "
            f"format {FORMAT}; finish the run with the version that began it, or begin anew under another name=... "
            f"with policy.checkpoint={checkpoint / 'policy'}"
        )
    return state
