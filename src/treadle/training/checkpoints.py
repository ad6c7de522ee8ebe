"""Checkpoints of a run: the policy as a Hugging Face directory, and what a resumed run needs beside it."""

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
"""How the folder of a checkpoint begins that a killed run left half written."""
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
        torch.save({"iteration": iteration, **state}, temporary / TRAINER)
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
    """What `save_checkpoint` was given, and `iteration`. Nothing but tensors and plain data is unpickled.

    Raises:
        CheckpointError: The file is missing or corrupt.
    """
    path = checkpoint / TRAINER
    try:
        # A file of another kind torch would take for its format of old, and fail in any of a dozen ways.
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        reason = f"it is cut short or of another kind, {path.stat().st_size} bytes"
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
    raise CheckpointError(f"{path}: cannot be read ({reason}); remove {checkpoint} to resume from the one before")
