"""The checkpoint of an imitation, in the folder of its run, so that one that is cut short goes on.

It holds the weights that are trained, the optimizer's state and that of everything random; with adapters on a large
policy that is little. Files have checksums, and a folder is whole or not there.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from treadle.config.section import Natural
from treadle.errors import CheckpointError, OutputError
from treadle.files import cannot_write, replace_directory
from treadle.policies.checkpoint import shapes
from treadle.policies.tensors import load_plain
from treadle.reading import library
from treadle.supervised.progress import REPORT_EVERY
from treadle.tables import LooseTable, read_table
from treadle.training.checksums import check_whole, write_checksums

FOLDER, STATE = "imitation", "state.pt"


class Stateful(Protocol):
    """Something that goes on from its state."""

    def state_dict(self) -> Any:
        """Its state, as tensors and plain data."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Go on from a state."""
        ...


class _State(LooseTable):
    step: Natural
    parts: dict[str, Any]


class ImitationCheckpoint:
    """Saves an imitation every so many steps, and lets it go on.

    Args:
        directory: the run's folder.
        every: steps from one save to the next, rounded up to a multiple of 50, where lines of metrics end; 0 saves
            never. The last step is saved too, for an evaluation that is cut short.
        say: told of a checkpoint that is not whole: imitation then begins anew.

    Raises:
        OutputError: What is not whole cannot be removed.
    """

    def __init__(self, directory: Path, every: int, say: Callable[[str], None]) -> None:
        self._folder = directory / FOLDER
        self._every = every
        self._state: _State | None = None
        try:
            if self._folder.exists():
                check_whole(self._folder)
                self._state = read_table(_State, load_plain(self._folder / STATE), self._folder / STATE)
        except CheckpointError as error:
            say(f"warning: {error}: the checkpoint of the imitation is not whole; imitation begins anew")
            self.remove()
        self.step = 0 if self._state is None else self._state.step
        """Steps that were done."""

    def restore(self, parts: Mapping[str, Stateful]) -> None:
        """Let everything go on from the checkpoint, if there is one. Raises CheckpointError where it is of something
        else.
        """
        state, self._state = self._state, None
        if state is None:
            return
        path, advice = self._folder / STATE, f"; remove {self._folder}, and imitation begins anew"
        if state.parts.keys() != parts.keys():
            raise CheckpointError(f"{path}: parts: found {sorted(state.parts)}, allowed {sorted(parts)}{advice}")
        for name, part in parts.items():
            with library(path, CheckpointError, f"the state of {name}", advice):
                part.load_state_dict(state.parts[name])

    def save(self, step: int, steps: int, parts: Mapping[str, Stateful]) -> None:
        """Save everything as it is after `step` of `steps`, if that is due. Raises OutputError."""
        due = step == steps or (step - self.step >= self._every and step % REPORT_EVERY == 0)
        if not self._every or not due:
            return
        self.step = step
        state = {"step": step, "parts": {name: part.state_dict() for name, part in parts.items()}}
        temporary: Path | None = None
        try:
            temporary = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=self._folder.parent))
            torch.save(state, temporary / STATE)
            write_checksums(temporary, {})
            temporary.chmod(0o755)
            replace_directory(temporary, self._folder)
        except (OSError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError of its zip writer.
            raise OutputError(
                f"{self._folder}: cannot save the checkpoint of the imitation ({error}); free space, or save none with "
                "imitation.save_every=0"
            ) from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)

    def remove(self) -> None:
        """Remove the checkpoint, and what a kill left half written. Raises OutputError."""
        for folder in (self._folder, *self._folder.parent.glob(f".{FOLDER}-*")):
            try:
                with suppress(FileNotFoundError):
                    shutil.rmtree(folder)
            except OSError as error:
                raise cannot_write(folder, error) from error


def is_finished(directory: Path, result: str, say: Callable[[str], None]) -> bool:
    """Whether a run has its result, which is written last. If so, `say` is told, and what a kill left of the checkpoint
    is removed. Raises OutputError.
    """
    if not (directory / result).is_file():
        return False
    ImitationCheckpoint(directory, 0, lambda _: None).remove()
    say(f"{directory} is finished and stays as it is; choose another name=... to learn anew")
    return True


class Trained:
    """The weights of a module that are trained, by name."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """See `Stateful`."""
        return dict(self._parameters)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `Stateful`. Raises ValueError for other weights."""
        if shapes(state_dict) != shapes(self._parameters):
            raise ValueError("it is of other weights than are trained here")
        for name, tensor in self._parameters.items():
            tensor.copy_(state_dict[name])


class Draws:
    """A generator of torch."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> Any:
        """See `Stateful`."""
        return self._generator.get_state()

    def load_state_dict(self, state_dict: Any) -> None:
        """See `Stateful`."""
        self._generator.set_state(state_dict)
