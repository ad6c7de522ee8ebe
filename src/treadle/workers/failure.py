"""An error of a worker, carried to the crew. Imports the standard library alone: a worker may lack all else."""

import traceback
from dataclasses import dataclass
from typing import NoReturn

from treadle import errors
from treadle.errors import ConfigError, SimulatorError, TreadleError


class WorkerError(RuntimeError):
    """A bug that a worker raised, with the worker's own trace."""


@dataclass(slots=True)
class Failure:
    """Why a worker could not do what it was asked."""

    message: str
    mendable: str | None = "SimulatorError"
    """The name of the `TreadleError`, or None where it is a bug."""
    trace: str = ""
    final: bool = False
    """Trying again is no use."""

    @classmethod
    def of(cls, error: Exception, doing: str = "") -> "Failure":
        """The failure of an error that was raised while `doing` something; called where the error is handled."""
        mendable = type(error).__name__ if isinstance(error, TreadleError) else None
        said = str(error) if mendable else f"{type(error).__name__}: {error}"
        return cls(
            f"{doing}: {said}" if doing else said, mendable, traceback.format_exc(), isinstance(error, ConfigError)
        )

    def throw(self, note: str = "") -> NoReturn:
        """Raise the worker's error here."""
        if self.mendable is None:
            raise WorkerError(f"{self.message}{note}\n\n{self.trace}")
        raise getattr(errors, self.mendable, SimulatorError)(f"{self.message}{note}")
