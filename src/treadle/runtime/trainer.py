"""The trainer: it owns the algorithm, the average of weights, and the weights that are published."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from treadle.data.rollout import Rollout
from treadle.errors import VersionError
from treadle.runtime.exhaustion import naming_what_to_lower
from treadle.runtime.weights import Weights, trained_state
from treadle.training.algorithm import Training, make_algorithm
from treadle.training.averaging import WeightAverage
from treadle.training.checkpoints import CheckpointWriter
from treadle.training.saving import save_policy
from treadle.training.sharding import unsharded


class Trainer:
    """Turns rollouts into versions of a policy.

    Args:
        training: policy, critic and settings of the training. On several ranks each has a trainer, and all make the
            same calls.
        shared: the player acts with the trained parameters themselves, so nothing has to be published.
        copied: what is published stays as it is while training goes on.
    """

    def __init__(self, training: Training, *, shared: bool = True, copied: bool = False) -> None:
        config = training.config
        self._config = config
        self.policy = training.policy
        self.algorithm = make_algorithm(training)
        self._average = WeightAverage(self.algorithm.trained, config.optimizer.average)
        self._shared, self._copied = shared, copied
        self._staleness, self._streams = config.staleness, config.overlap == "stream"
        self._version = 0
        self._offload = config.placement.offload
        self._ranks = training.ranks
        self._writer = CheckpointWriter(
            self._ranks,
            background=config.save_in_background,
            keep=config.keep_checkpoints,
            deadline=config.runtime.timeout,
        )

    def wants_more(self, rollouts: Sequence[Rollout]) -> bool:
        """See `Algorithm.wants_more`. With overlap stream it also prepares the update, by what is there."""
        if self._streams:
            self.algorithm.prepare(rollouts, self._version)
        return self.algorithm.wants_more(rollouts)

    def update(self, rollouts: Sequence[Rollout], version: int) -> dict[str, float]:
        """See `Algorithm.update`.

        Raises:
            ExhaustedError: Memory is not enough.
            VersionError: Some decision was made with other weights than it may: those of this version, or by as many
                updates older ones as `TrainConfig.staleness` allows.
        """
        with self._ranks.together(VersionError):
            check_versions(rollouts, version, self._staleness)
        with naming_what_to_lower(self._config, "training"):
            metrics = self.algorithm.update(rollouts, version)
        if self._offload:
            self.algorithm.offload()
        return metrics

    def alarms(self, metrics: dict[str, float]) -> dict[str, str]:
        """See `Algorithm.alarms`."""
        return self.algorithm.alarms(metrics)

    def average(self) -> None:
        """Take the weights as they are now into the average that is kept at the end."""
        self._average.update()

    def publish(self, version: int) -> Weights:
        """The weights as they are now, after `version` updates; on other ranks than 0, no tensors."""
        self._version = version
        if self._shared:
            return Weights(version)
        return Weights(version, trained_state(self.policy, self._ranks, copy=self._copied))

    def fetch(self, weights: Weights) -> Weights:
        """Published weights, which are here."""
        return weights

    def put(self, weights: Weights) -> Weights:
        """Weights that were published before."""
        return weights

    def playing(self) -> AbstractContextManager[None]:
        """The policy may act, without other ranks, for as long as the block lasts; see `sharding.unsharded`."""
        return unsharded(self.policy)

    def finish_saving(self) -> None:
        """Wait until checkpoints are written. Raises OutputError."""
        self._writer.finish()

    def swap_in(self) -> None:
        """Put the average of weights in their place."""
        self._average.swap_in()

    def swap_out(self) -> None:
        """Put the latest weights back in the place of their average."""
        self._average.swap_out()

    def export(self, directory: Path) -> None:
        """Save the policy as it is, with adapters merged. Raises OutputError."""
        save_policy(self.policy, directory, self._ranks)

    def save(self, directory: Path, version: int, state: dict[str, Any]) -> None:
        """Write a checkpoint: the policy, the trainer's own state, and others' `state`; the first rank writes."""
        own = {"algorithm": self.algorithm.state_dict(), "average": self._average.state_dict()}
        self._writer.save(directory, version, self.policy, own | state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote; the policy has its saved weights already."""
        self.algorithm.load_state_dict(state["algorithm"])
        self._average.load_state_dict(state["average"])


def check_versions(rollouts: Sequence[Rollout], version: int, staleness: int = 0) -> None:
    """Raises VersionError where decisions were made with newer weights than those of this version, or with weights that
    are more than `staleness` updates older.
    """
    for rollout in rollouts:
        acted = rollout.versions[rollout.valid.any(-1)].unique().tolist()
        if not all(version - staleness <= found <= version for found in acted):
            allowed = f"{version - staleness} to {version}" if staleness else f"{version} alone"
            raise VersionError(
                f"the trainer is at version {version} of the weights, and was given decisions of version "
                f"{', '.join(map(str, acted))}, where {allowed} may be: a player did not receive what was published"
            )
