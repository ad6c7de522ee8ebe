"""Settings of this package's algorithms: the section `algorithm` of a recipe whose `kind` names one. No torch here."""

from typing import TYPE_CHECKING, ClassVar, Literal

from treadle.config.algorithm import AlgorithmConfig, DataNeeds
from treadle.config.section import Positive, Rate, Share

if TYPE_CHECKING:
    from treadle.config.schema import TrainConfig


class FilteredBCConfig(AlgorithmConfig):
    """Filtered behaviour cloning: imitate the episodes that succeeded."""

    implementation: ClassVar[str] = "treadle_reach.filtered_bc:FilteredBC"
    kind: Literal["filtered_bc"] = "filtered_bc"  # pyright: ignore[reportIncompatibleVariableOverride]
    """filtered_bc"""
    successes: Positive = 64
    """An update waits for so many successful episodes,"""
    rounds: Positive = 4
    """or for so many rollouts."""
    epochs: Positive = 2
    """Passes over the successful episodes."""
    minibatch: Positive = 256
    """Decisions per optimizer step."""

    @property
    def needs(self) -> DataNeeds:
        """Whole episodes, one per slot and rollout."""
        return DataNeeds(partial_reset=False)


class AWRConfig(AlgorithmConfig):
    """Advantage-weighted regression (Peng et al. 2019) on a replay buffer, with values learned by TD(0)."""

    implementation: ClassVar[str] = "treadle_reach.awr:AWR"
    kind: Literal["awr"] = "awr"  # pyright: ignore[reportIncompatibleVariableOverride]
    """awr"""
    buffer: Positive = 20_000
    """Decisions that are kept, the latest."""
    steps: Positive = 30
    """Optimizer steps per update."""
    minibatch: Positive = 256
    """Decisions per step, drawn from the buffer."""
    gamma: Share = 0.95
    """Discount per decision."""
    temperature: Rate = 0.5
    """A decision weighs exp(advantage / temperature), where advantages have a standard deviation of 1."""
    weight_cap: Rate = 10.0
    """That weight is cut above this."""

    @property
    def needs(self) -> DataNeeds:
        """The observation after each decision, also where an episode was cut."""
        return DataNeeds(values=True, keep_final="truncated", next_inputs=True)

    def check(self, config: "TrainConfig") -> None:
        """Raise ValueError where values are not those of the policy's head."""
        if config.critic.kind != "value_head":
            raise ValueError(
                f"critic.kind {config.critic.kind!r} with algorithm.kind 'awr', which values what the policy reads; "
                "use critic.kind 'value_head'"
            )
