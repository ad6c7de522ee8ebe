"""Checkpoints of a run: the policy as a Hugging Face directory, and beside it the state that a resumed run needs.

`checksums.json` says how long each file is and what it holds, so that a checkpoint that is not whole is not used.
`trainer.pt` holds the state, but for tensors that are divided among ranks: each rank writes its rows of them into a
file of its own, and any number of ranks reads the rows that it needs. So no process ever holds the whole. It is not
torch's distributed checkpoint, because reading one runs whatever its pickled metadata says, and because its waits have
no deadline that names a rank.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.errors import CheckpointError, OutputError
from treadle.files import cannot_write, replace_directory, sha256, write_atomically
from treadle.policies.protocol import Policy
from treadle.policies.tensors import load_plain
from treadle.training.checksums import check_whole, write_checksums
from treadle.training.parts import join_state, map_tensors, part_path, read_parts, split_state, write_part
from treadle.training.ranks import ALONE, Ranks
from treadle.training.saving import savable
from treadle.training.shards import Shard
from treadle.training.state import FORMAT, check_state, checkpoint_name

TRAINER = "trainer.pt"
UNFINISHED = ".saving-"
"""Prefix of a folder that is being written; a killed run may leave one."""
BROKEN = "not-whole-"
"""Prefix of a folder that was set aside."""
FAILED, SUM = ".failed", ".sha256"
"""Suffixes of the files by which a rank says that it could not write its part, or that it has, with its checksum."""


class CheckpointWriter:
    """Writes checkpoints, each whole or not at all. All ranks make the same calls, into a folder that all of them see;
    rank 0 writes the policy. Other ranks wait for it no longer than they do for anything: their time-out must be longer
    than the writing takes.

    Args:
        ranks: they hold the state.
        background: `save` copies everything to the CPU's memory and returns; a thread writes the files. An error of it
            is raised by the next `save`, or by `finish`.
        keep: how many of the latest checkpoints stay.
        deadline: seconds that rank 0 waits for the files of others.
    """

    def __init__(
        self, ranks: Ranks = ALONE, *, background: bool = False, keep: int = 2, deadline: float = 600.0
    ) -> None:
        self._ranks = ranks
        self._background = background
        self._keep = keep
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
        target = directory / checkpoint_name(iteration)
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
        """Wait until everything is written. Raises OutputError on all ranks where it was not, or not within the
        deadline.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self._ranks.together(OutputError):
                try:
                    pending.result(self._deadline)
                except FutureTimeoutError:
                    raise OutputError(
                        f"a checkpoint was not written within {self._deadline:g} s; see whether its disk answers, or "
                        "raise runtime.timeout"
                    ) from None

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
                    write_checksums(temporary, _await_parts(temporary, parts, self._deadline))
                    _put_in_place(temporary, target, self._keep)
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
        # Each rank reads its own part, so that rank 0 need not read all of them.
        write_atomically(path.with_suffix(SUM), sha256(path))
    except (OSError, OutputError) as error:
        # So that rank 0 does not wait for the file; it may fail on a full disk too.
        with suppress(OSError):
            path.with_suffix(FAILED).write_text(str(error))
        raise


def _await_parts(folder: Path, count: int, deadline: float) -> dict[str, str]:
    """Wait for the files of other ranks; returns the checksum of each by its name. Raises OSError."""
    end, sums = time.monotonic() + deadline, dict[str, str]()
    for rank in range(count):
        path = part_path(folder, rank, count)
        while not path.with_suffix(SUM).exists():
            if path.with_suffix(FAILED).exists():
                raise OSError(f"rank {rank} could not write its part: {path.with_suffix(FAILED).read_text()}")
            if time.monotonic() > end:
                raise OSError(
                    f"{path.name} of rank {rank} was not there within {deadline:g} s; all ranks need to see one folder"
                )
            time.sleep(0.02)
        sums[path.name] = path.with_suffix(SUM).read_text()
    for left in folder.glob(f"*{SUM}"):
        left.unlink()
    return sums


def _put_in_place(temporary: Path, target: Path, keep: int) -> None:
    temporary.chmod(0o755)
    replace_directory(temporary, target)
    for old in list_checkpoints(target.parent)[:-keep]:
        shutil.rmtree(old)


def _cannot(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot save the checkpoint ({error}); free space or choose another output=")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", copy=True)


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints from the oldest to the latest."""
    return sorted(path for path in directory.glob("iteration-*") if path.is_dir())


def last_whole(directory: Path, say: Callable[[str], None]) -> Path | None:
    """The latest checkpoint whose files are as they were written, None before there is any. Later ones that are not are
    set aside under another name, and `say` is told which and why.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
        OutputError: One cannot be set aside.
    """
    reasons: list[str] = []
    for checkpoint in reversed(found := list_checkpoints(directory)):
        try:
            check_whole(checkpoint)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for broken, reason in zip(reversed(found), reasons, strict=False):
            moved = _set_aside(broken)
            say(f"warning: {reason}: that checkpoint is not whole, and is now {moved}; going on from {checkpoint.name}")
        return checkpoint
    if reasons:
        raise CheckpointError(
            f"{reasons[0]}: that checkpoint is not whole, and none before it is; begin anew under another name=..., "
            f"or remove {directory.parent}"
        )
    return None


def _set_aside(checkpoint: Path) -> Path:
    try:
        moved = Path(tempfile.mkdtemp(prefix=f"{BROKEN}{checkpoint.name}-", dir=checkpoint.parent))
        checkpoint.replace(moved)
    except OSError as error:
        raise cannot_write(checkpoint, error) from error
    return moved


def load_trainer(checkpoint: Path) -> dict[str, Any]:
    """The state that was saved, and `iteration`. Tensors that were divided among ranks are `StoredTensor`s, which
    any number of ranks reads its rows of. Only tensors and plain data are unpickled.

    Raises:
        CheckpointError: A file is missing or corrupt, or is of something else.
    """
    path = checkpoint / TRAINER
    advice = f"; remove {checkpoint} to resume from the one before"
    state = load_plain(path, advice=advice)
    parts = check_state(state, path, advice).parts
    del state["parts"]
    return join_state(state, read_parts(checkpoint, parts)) if parts else state
