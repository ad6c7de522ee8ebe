"""Checkpoints of a run: the policy as a Hugging Face directory, and beside it the state that a resumed run needs.

`trainer.pt` holds that state, but for tensors that are divided among ranks: each rank writes its rows of them into a
file of its own, and any number of ranks reads the rows that it needs. So no process ever holds the whole. It is not
torch's distributed checkpoint, because reading one runs whatever its pickled metadata says, and because its waits have
no deadline that names a rank.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from treadle.config.section import Natural, NonNegative
from treadle.errors import CheckpointError, OutputError
from treadle.files import replace_directory
from treadle.policies.protocol import Policy
from treadle.policies.tensors import load_plain
from treadle.tables import LooseTable, read_table
from treadle.training.parts import join_state, map_tensors, part_path, read_parts, split_state, write_part
from treadle.training.ranks import ALONE, Ranks
from treadle.training.saving import savable
from treadle.training.shards import Shard

TRAINER = "trainer.pt"
UNFINISHED = ".saving-"
"""Prefix of a folder that is being written; a killed run may leave one."""
FAILED = ".failed"
"""Suffix of the file by which a rank says that it could not write its part."""
FORMAT = 3
"""The format of a trainer's state. It counts up when older runs can no longer be resumed."""
KEEP = 2
"""How many of the latest checkpoints stay on disk."""


class CheckpointWriter:
    """Writes checkpoints, each whole or not at all. All ranks make the same calls, into a folder that all of them see;
    rank 0 writes the policy. Other ranks wait for it no longer than they do for anything: their time-out must be longer
    than the writing takes.

    Args:
        ranks: they hold the state.
        background: `save` copies everything to the CPU's memory and returns; a thread writes the files. An error of it
            is raised by the next `save`, or by `finish`.
        deadline: seconds that rank 0 waits for the files of others.
    """

    def __init__(self, ranks: Ranks = ALONE, *, background: bool = False, deadline: float = 600.0) -> None:
        self._ranks = ranks
        self._background = background
        self._deadline = deadline
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, directory: Path, iteration: int, policy: Policy, state: dict[str, Any]) -> Path:
        """Write `directory/iteration-NNNNNN`, and drop all but the last few.

        Raises:
            OutputError: On any rank, the folder cannot be written, or the disk is full; earlier checkpoints are as they
                were. Of a background writer it may be about the checkpoint before.
            RankError: A rank does not come.
        """
        self.finish()
        target = directory / f"iteration-{iteration:06d}"
        temporary = self._make_folder(directory)
        try:
            write = self._writing(temporary, target, policy, {"format": FORMAT, "iteration": iteration, **state})
            if not self._background:
                with self._ranks.together(OutputError):
                    write()
                return target
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._pending = self._thread.submit(write)
        return target

    def finish(self) -> None:
        """Wait until everything is written. Raises OutputError on all ranks where it was not."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._ranks.together(OutputError):
                pending.result()

    def _make_folder(self, directory: Path) -> Path:
        """An empty folder, the same on all ranks; what killed runs left is swept away."""
        made = ""
        with self._ranks.together(OutputError):
            if self._ranks.rank == 0:
                try:
                    directory.mkdir(parents=True, exist_ok=True)
                    for left in directory.glob(f"{UNFINISHED}*"):
                        shutil.rmtree(left)
                    made = tempfile.mkdtemp(prefix=UNFINISHED, dir=directory)
                except OSError as error:
                    raise _cannot(directory, error) from error
        return Path(self._ranks.gather_text(made)[0])

    def _writing(self, temporary: Path, target: Path, policy: Policy, state: dict[str, Any]) -> Callable[[], None]:
        """What writes this rank's files. All that needs other ranks is done here, before."""
        rank, count = self._ranks.rank, self._ranks.count
        plain, shards = split_state(state)
        saved = savable(policy, self._ranks, copied=self._background)
        if self._background:
            shards = {name: replace(shard, rows=_copy(shard.rows)) for name, shard in shards.items()}
            plain = map_tensors(plain, _copy) if rank == 0 else {}
        parts = count if int(self._ranks.sum(torch.tensor(len(shards)))) else 0

        def write() -> None:
            try:
                if parts:
                    _write_part(temporary, rank, parts, shards)
                if rank == 0:
                    saved.save(temporary / "policy", merge=False)
                    torch.save({"parts": parts, **plain}, temporary / TRAINER)
                    _await_parts(temporary, parts, self._deadline)
                    _put_in_place(temporary, target)
            except (OSError, RuntimeError) as error:
                # torch.save reports a full disk as a RuntimeError of its zip writer.
                raise _cannot(target, error) from error
            finally:
                if rank == 0:
                    shutil.rmtree(temporary, ignore_errors=True)

        return write


def _write_part(folder: Path, rank: int, count: int, shards: dict[str, Shard]) -> None:
    path = part_path(folder, rank, count)
    try:
        write_part(path, shards)
    except OSError as error:
        # So that rank 0 does not wait for the file; it may fail on a full disk too.
        with suppress(OSError):
            path.with_suffix(FAILED).write_text(str(error))
        raise


def _await_parts(folder: Path, count: int, deadline: float) -> None:
    """Wait for the files of other ranks. Raises OSError."""
    end = time.monotonic() + deadline
    for rank in range(count):
        path = part_path(folder, rank, count)
        while not path.exists():
            if path.with_suffix(FAILED).exists():
                raise OSError(f"rank {rank} could not write its part: {path.with_suffix(FAILED).read_text()}")
            if time.monotonic() > end:
                raise OSError(
                    f"{path.name} of rank {rank} was not there within {deadline:g} s; all ranks need to see one folder"
                )
            time.sleep(0.02)


def _put_in_place(temporary: Path, target: Path) -> None:
    temporary.chmod(0o755)
    replace_directory(temporary, target)
    for old in list_checkpoints(target.parent)[:-KEEP]:
        shutil.rmtree(old)


def _cannot(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot save the checkpoint ({error}); free space or choose another output=")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints from the oldest to the latest."""
    return sorted(directory.glob("iteration-*"))


def load_trainer(checkpoint: Path) -> dict[str, Any]:
    """The state that was saved, and `iteration`. Tensors that were divided among ranks are `StoredTensor`s, which
    any number of ranks reads its rows of. Only tensors and plain data are unpickled.

    Raises:
        CheckpointError: A file is missing or corrupt.
    """
    path = checkpoint / TRAINER
    advice = f"; remove {checkpoint} to resume from the one before"
    state = load_plain(path, advice=advice)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not the state of a trainer{advice}")
    _current(state, checkpoint)
    found = read_table(TrainerState, {name: state[name] for name in TrainerState.model_fields if name in state}, path)
    del state["parts"]
    return join_state(state, read_parts(checkpoint, found.parts)) if found.parts else state


class RecorderState(LooseTable):
    """What a recorder goes on from."""

    elapsed: NonNegative
    control_steps: Natural


class TrainerState(LooseTable):
    """What every trainer's state has; algorithms and players know their own parts."""

    parts: Annotated[int, Field(ge=0, le=2**16)]
    iteration: Natural
    algorithm: dict[Any, Any] = {}
    average: dict[Any, Any] = {}
    player: dict[Any, Any] = {}
    recorder: RecorderState | None = None


def _current(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Raises CheckpointError for the state of another version of Treadle."""
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{checkpoint / TRAINER}: found format {state.get('format', 1)}, this version of Treadle goes on from "
            f"format {FORMAT}; finish the run with the version that began it, or begin anew under another name=... "
            f"with policy.checkpoint={checkpoint / 'policy'}"
        )
    return state
