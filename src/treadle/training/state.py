"""The state of a run in a checkpoint, as a file must have it: what is not so is an error that names file and key."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from treadle.config.section import Natural, NonNegative
from treadle.data.scenario import Split
from treadle.errors import CheckpointError
from treadle.tables import LooseTable, Table, read_table

FORMAT = 5
"""The format of a trainer's state. It counts up when older runs can no longer be resumed."""

Bits64 = Annotated[int, Field(ge=0, lt=2**64)]


class ScenarioState(Table):
    """A `Scenario`."""

    simulator: str
    suite: str
    task: str
    split: Split
    index: Natural
    instruction: str


class EpisodeState(Table):
    """The episode that a slot is in the middle of."""

    scenario: ScenarioState
    actions: list[list[float]]
    """[n, A] that it has had."""
    key: Bits64


class SourceState(LooseTable):
    """Where the stream of scenarios stands."""

    given: list[Natural]
    """Episodes that each slot was given."""


class PlayerState(Table):
    """Where every slot stands."""

    episodes: list[EpisodeState | None]
    upcoming: list[list[tuple[str, Split, Natural, Bits64]]]
    """Suite, split, index and key of the scenarios that each slot was given and has not begun."""
    source: SourceState


class RecorderState(LooseTable):
    """What a recorder goes on from."""

    elapsed: NonNegative
    control_steps: Annotated[int, Field(ge=0)]


class PublishedState(Table):
    """Weights that a rollout in flight is played by."""

    version: Natural
    policy: dict[str, Any] | None


class TrainerState(LooseTable):
    """What every trainer's state has; an algorithm checks its own part."""

    parts: Annotated[int, Field(ge=0, le=2**16)]
    iteration: Natural
    algorithm: dict[Any, Any] = {}
    average: dict[Any, Any] = {}
    player: PlayerState | None = None
    recorder: RecorderState | None = None
    published: list[PublishedState] = []


def check_state(state: object, path: Path, advice: str) -> TrainerState:
    """What is the same for every run in the state that `path` holds. Raises CheckpointError."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not the state of a trainer{advice}")
    if state.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
        raise CheckpointError(
            f"{path}: found format {state.get('format', 1)}, this version of Treadle goes on from "  # pyright: ignore[reportUnknownMemberType]
            f"format {FORMAT}; finish the run with the version that began it, or begin anew under another name=... "
            f"with policy.checkpoint={path.parent / 'policy'}"
        )
    found = read_table(TrainerState, {name: state[name] for name in TrainerState.model_fields if name in state}, path)
    if path.parent.name != checkpoint_name(found.iteration):
        raise CheckpointError(f"{path}: iteration: found {found.iteration}, in a folder {path.parent.name!r}{advice}")
    return found


def checkpoint_name(iteration: int) -> str:
    """The folder of an iteration's checkpoint."""
    return f"iteration-{iteration:06d}"
