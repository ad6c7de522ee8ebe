"""What every algorithm's settings share, and how settings of other packages are found by name."""

from abc import abstractmethod
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from treadle.config.section import Section
from treadle.errors import ConfigError, did_you_mean
from treadle.plugins import import_callable

GROUP = "treadle.algorithms"
BUILT_IN = {"ppo": "treadle.config.on_policy:PPOConfig", "grpo": "treadle.config.on_policy:GRPOConfig"}


@dataclass(frozen=True, slots=True)
class DataNeeds:
    """What an algorithm needs of the rollouts it is given."""

    partial_reset: bool = True
    """A slot begins its next episode as soon as one ends; false plays one episode per slot and rollout."""
    group_size: int = 1
    """Slots that play the same scenario."""
    values: bool = False
    """A critic's values."""
    values_per_action: bool = False
    """A value for each action of a chunk; false has one for the chunk."""
    keep_final: Literal["truncated", "ended", "none"] = "none"
    """Of which episodes the last observation is kept and valued: those cut short, all that ended, or none."""
    next_inputs: bool = False
    """The observation after each decision is kept."""
    rollouts: int = 1
    """Rollouts that every update takes; where playing overlaps with training they are played without asking."""
    refills: int = 0
    """Further rollouts that an update may take, at most."""


class AlgorithmConfig(Section):
    """Settings of an algorithm. A subclass adds its own; each algorithm has a class, which `kind` names."""

    implementation: ClassVar[str]
    """`package.module:Class` of the algorithm, imported when training begins."""

    kind: str = Field(default="", validate_default=True)
    """The algorithm: ppo, grpo, another that a package offers, or `package.module:Class` of its settings."""

    @field_validator("kind")
    @classmethod
    def _names_its_class(cls, kind: str) -> str:
        return kind or f"{cls.__module__}:{cls.__qualname__}"

    @property
    @abstractmethod
    def needs(self) -> DataNeeds:
        """What rollouts must hold."""

    def count_steps(self, decisions: int) -> int | None:
        """Optimizer steps of the policy in an update from so many decisions, at most; None where it cannot be told."""
        return None

    def not_streamed(self, config: Any) -> str | None:
        """Why, with overlap stream, an update of a run (a `TrainConfig`) begins with its last rollout and not with the
        first: a clause that names settings. None where it begins with the first.
        """
        return "this algorithm prepares nothing before"

    def check(self, config: Any) -> None:
        """Raise ValueError where other sections of the run, a `TrainConfig`, do not suit the algorithm."""


def known_algorithms() -> dict[str, str]:
    """`package.module:Class` of settings by the name of their algorithm: those of Treadle, and those that installed
    packages offer by the entry point group `treadle.algorithms`.
    """
    return {entry.name: entry.value for entry in sorted(metadata.entry_points(group=GROUP))} | BUILT_IN


def find_algorithm(kind: str) -> type[AlgorithmConfig]:
    """The class of an algorithm's settings, by name or `package.module:Class`. Raises ConfigError."""
    known = known_algorithms() if kind not in BUILT_IN else BUILT_IN
    if kind not in known and ":" not in kind:
        raise ConfigError(
            f"algorithm.kind: unknown algorithm {kind[:80]!r}{did_you_mean(kind, known)}; known: {', '.join(known)}; "
            "or name a class of settings as package.module:Class"
        )
    target = known.get(kind, kind)
    found = import_callable("algorithm.kind", target, "class")
    if not (isinstance(found, type) and issubclass(found, AlgorithmConfig) and hasattr(found, "implementation")):
        raise ConfigError(
            f"algorithm.kind: {target!r} is no subclass of {AlgorithmConfig.__module__}:AlgorithmConfig with an "
            "`implementation`; name the class of the algorithm's settings, not the algorithm"
        )
    return found
