"""What the loop asks of the roles, in one process or in many.

Rollouts and weights are opaque to the loop: in one process they are a `Rollout` and `Weights`, in many they say where
the parts are.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from treadle.data.step import EpisodeResult
from treadle.evaluation.evaluate import Report
from treadle.runtime.player import PlayReport
from treadle.runtime.weights import Weights
from treadle.simulators.protocol import SimulatorSpec

Film = tuple[EpisodeResult, NDArray[np.uint8]]
"""An episode, and its frames [length + 1, size, size, 3]."""
Chosen = tuple[str, int]
"""A suite, and the place of a scenario in its evaluation split."""


class Players(Protocol):
    """Everything that plays."""

    def collect(self, wants_more: Callable[[Sequence[Any]], bool]) -> Sequence[Any]:
        """Rollouts of the policy as it is, until no more are wanted."""
        ...

    def receive(self, weights: Any) -> None:
        """Act with these weights from now on."""
        ...

    def show(self, weights: Any) -> None:
        """Evaluate and film with these weights from now on."""
        ...

    def take_report(self) -> PlayReport:
        """What was played since the last call."""
        ...

    def evaluate(self, suite: str, report: Report, played: Collection[int] = ()) -> None:
        """Play the evaluation scenarios of a suite, without those `played` before; `report` is told of each once."""
        ...

    def film(self, chosen: Sequence[Chosen], size: int) -> list[Film]:
        """Film these evaluation scenarios, with frames of this size."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where every slot stands, as plain data."""
        ...

    @property
    def spec(self) -> SimulatorSpec:
        """The fixed facts of the simulator."""
        ...

    @property
    def policy_facts(self) -> dict[str, Any]:
        """See `Policy.describe`."""
        ...


class StepwisePlayers(Players, Protocol):
    """Players that also play their rollouts one at a time, as a thread asks for them."""

    def collect_one(self) -> Any:
        """One rollout of the policy as it is."""
        ...


class Trainers(Protocol):
    """Everything that trains."""

    def wants_more(self, rollouts: Sequence[Any]) -> bool:
        """Whether the next update needs more than these rollouts."""
        ...

    def update(self, rollouts: Sequence[Any], version: int) -> dict[str, float]:
        """Update the policy, which has had `version` updates; returns metrics by name."""
        ...

    def average(self) -> None:
        """Take the weights as they are now into the average that is kept at the end."""
        ...

    def publish(self, version: int) -> Any:
        """The weights as they are now, after `version` updates."""
        ...

    def fetch(self, weights: Any) -> Weights:
        """Published weights, from wherever they are."""
        ...

    def put(self, weights: Weights) -> Any:
        """Published weights, again, from what `fetch` gave."""
        ...

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """Sentences that a person should read, by name, from an iteration's metrics."""
        ...

    def save(self, directory: Path, version: int, state: dict[str, Any]) -> None:
        """Write a checkpoint: the policy, the trainer's own state, and the `state` of other roles."""
        ...

    def finish_saving(self) -> None:
        """Wait until checkpoints are written."""
        ...

    def swap_in(self) -> None:
        """Put the average of weights in their place."""
        ...

    def swap_out(self) -> None:
        """Put the latest weights back in the place of their average."""
        ...

    def export(self, directory: Path) -> None:
        """Save the policy as it is."""
        ...
