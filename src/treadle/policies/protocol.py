"""What a policy supplies to rollout and training.

Shapes: B samples, C actions of a chunk, A action dimensions, V values per forward (1 or C). Log-probs are [B, P, E]:
E entries at each of P positions, see `Policy.entries`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from treadle.data.batch import TensorBatch
from treadle.data.noise import Keys
from treadle.errors import ConfigError
from treadle.policies.footprint import Activations
from treadle.policies.inspection import CheckpointContents, count_contents
from treadle.policies.sampling import Sampling

if TYPE_CHECKING:
    from treadle.config.supervised import TinyModelConfig
    from treadle.simulators.protocol import SimulatorSpec

__all__ = ["Decision", "Evaluation", "Policy", "Sampling", "TensorBatch"]


@dataclass(slots=True)
class Decision:
    """What a policy decided for B samples."""

    actions: Tensor
    """[B, C, A] float32, un-normalised, in the policy's convention."""
    choice: Tensor
    """[B, ...] of any type: what `evaluate` must be given to say more of this decision, such as token ids, normalised
    actions, or the chain of a flow policy. Nobody but the policy looks into it.
    """
    log_probs: Tensor
    """[B, P, E] float32, under the distribution that was sampled."""
    values: Tensor | None
    """[B, V] float32, or None where the policy has no value head."""


@dataclass(slots=True)
class Evaluation:
    """What the trainer needs of decisions made earlier, with gradient."""

    log_probs: Tensor
    """[B, P, E] float32."""
    entropy: Tensor
    """[B, P, E] float32, nats."""
    values: Tensor | None
    """[B, V] float32, or None where the policy has no value head."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How D numbers are scaled."""

    low: NDArray[np.float64]
    """[D]; what is below is clipped."""
    high: NDArray[np.float64]
    """[D]"""
    scaled: NDArray[np.bool_]
    """[D], False for numbers that are left as they are, such as a gripper."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """The statistics that a policy scales by."""

    statistics: str
    """Their name."""
    action: Scale
    proprioception: Scale | None
    """None for a policy that takes none."""


class Policy(nn.Module, ABC):
    """A vision-language-action policy.

    A policy must have `prepare`, `act`, `evaluate`, `save` and `load`. The rest has defaults: what a policy cannot do
    it refuses by a ConfigError. `inputs` are always what its own `prepare` or `encode` returned.
    """

    kind: ClassVar[str]
    """Its name, for `treadle.policy` in config.json: that of its entry point, by default `package.module:Class`."""
    chunk: int
    """C, actions per decision."""
    action_dim: int
    """A."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" not in cls.__dict__:
            cls.kind = f"{cls.__module__}:{cls.__qualname__}"

    @classmethod
    @abstractmethod
    def load(
        cls,
        directory: Path,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        statistics: str | None = None,
        merge: bool = True,
        **overrides: Any,
    ) -> Self:
        """The policy of a directory. Raises CheckpointError or ConfigError.

        `dtype` None keeps the stored type. `statistics` names the data set whose statistics scale actions. `merge` puts
        adapters into the weights. `overrides` are settings that the directory lacks or has otherwise.
        """

    @classmethod
    def recognizes(cls, directory: Path, config: dict[str, Any]) -> bool:
        """Whether a directory that names no policy holds one of this class; `config` is its config.json, or empty."""
        return False

    @classmethod
    def statistics_names(cls, name: str) -> tuple[str, ...]:
        """The names under which the statistics of a data set may be found, its own first."""
        return (name,)

    @classmethod
    def create_tiny(
        cls,
        model: "TinyModelConfig",
        spec: "SimulatorSpec",
        texts: Iterable[str],
        statistics: dict[str, Any],
        *,
        seed: int = 0,
    ) -> Self:
        """A policy from nothing, for what a simulator shows and takes; `texts` hold the words of its instructions, and
        `statistics` scale its actions and proprioception.
        """
        cls._refuse("model.kind", "cannot be made from nothing; start from a checkpoint")

    @classmethod
    def examine(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> CheckpointContents:
        """What a directory holds, for `treadle policy inspect`, with the settings of `load`.

        By default the policy is loaded for it.
        """
        policy = cls.load(directory, device=torch.device("cpu"), dtype=dtype, statistics=statistics, **overrides)
        return count_contents(directory, cls.kind, policy)

    @classmethod
    def outline(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> Self:
        """The policy of a directory for its shapes and types alone, with the settings of `load`: on the meta device
        where it can be made there. By default it is loaded.
        """
        return cls.load(directory, device=torch.device("cpu"), dtype=dtype, statistics=statistics, **overrides)

    @classmethod
    def outline_size(cls, size: str, dtype: torch.dtype, **overrides: Any) -> Self:
        """The same of a size by name, without a directory. Raises ConfigError."""
        cls._refuse("--size", f"has no size {size!r}; name a checkpoint")

    def activations(self) -> Activations | None:
        """The memory that a sample takes in the policy as it is now, on any device; None where that is not known."""
        return None

    @property
    def entries(self) -> tuple[int, int]:
        """(P, E), the shape of a decision's log-probs: E at each of P positions.

        P is C where each action has log-probs of its own, and 1 where a decision has one set.
        """
        return self.chunk, self.action_dim

    @property
    def predicted(self) -> int:
        """How many actions are predicted together, and `targets` takes: C by default, more where a policy looks again
        before it has executed all.
        """
        return self.chunk

    @property
    def cameras(self) -> int:
        """How many cameras it sees, 0 for one that takes any number."""
        return 0

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        return 0

    def describe(self) -> dict[str, Any]:
        """Facts that its actions depend on beside the weights, as plain data, for manifests of evaluations."""
        return {"kind": self.kind, "chunk": self.chunk, "action_dim": self.action_dim}

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures of sampling that are worth a trial before training, from little exploration to much; see
        `runtime.preflight`.
        """
        return 0.5, 0.7, 1.0

    @property
    def scaling(self) -> Scaling | None:
        """What demonstrations are compared with before they are imitated; None for a policy that does not say."""
        return None

    def rescale(self, name: str, statistics: dict[str, Any]) -> None:
        """Scale by other statistics from here on, and save these alone: those of a data set, as `create_tiny` takes
        them.
        """
        self._refuse("imitation.statistics", "scales by its own statistics; use 'checkpoint'")

    @abstractmethod
    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> TensorBatch:
        """Frames [B, cameras, H, W, 3] (or one array [B, H, W, 3] per camera), B instructions and raw proprioception
        [B, number of joints and so on] to model inputs on the policy's device. Inputs of separate calls can be joined.
        """

    def encode(self, inputs: Any) -> TensorBatch:
        """Put what frozen vision makes of the frames in their place, without gradient."""
        return inputs

    @abstractmethod
    def act(self, inputs: Any, sampling: Sampling, keys: Keys | None = None) -> Decision:
        """Decide, without gradient. All randomness of sample b comes from `keys[b]` (see `treadle.data.noise`), so that
        it can belong to a scenario; without keys it is drawn afresh. Keys are given at temperature 0 too: a policy may
        start from noise and still take the most likely way from there.
        """

    @abstractmethod
    def evaluate(self, inputs: Any, choice: Tensor, sampling: Sampling) -> Evaluation:
        """Log-probs, entropy and values of decisions whose `choice` [B, ...] `act` returned, with gradient."""

    def values(self, inputs: Any) -> Tensor:
        """Values [B, V] alone, with gradient where enabled."""
        self._refuse("critic.kind", "has no values; use critic.kind 'privileged' or 'none'")

    def targets(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, predicted, A] to what `supervised_loss` compares with, [B, ...]."""
        self._refuse("policy.kind", "cannot imitate")

    def supervised_loss(
        self,
        inputs: Any,
        targets: Tensor,
        *,
        label_width: float = 0.0,
        generator: torch.Generator | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """The loss of imitating `targets` [B, ...], a scalar. Randomness comes from `generator`, on the CPU.

        `label_width` spreads each label over neighbouring bins, by a Gaussian of that standard deviation, for policies
        whose actions are bins. `counted` [B, predicted] bool says which actions of the chunks take part in the mean; by
        default all do.
        """
        self._refuse("policy.kind", "cannot imitate")

    def freeze(self, vision: bool = True) -> dict[str, list[nn.Parameter]]:
        """Choose what is trained: the trainable parameters of the `policy` and of its `value` head (all whose names
        begin with `value_head.`).

        `vision` keeps vision as it is, in a policy that has such a part; by default everything is trained.
        """
        self.requires_grad_(True)
        return self._trainable()

    def add_value_head(self, outputs: int) -> None:
        """Give the policy a fresh value head with V outputs, in place of any it has."""
        self._refuse("critic.kind", "takes no value head; use critic.kind 'privileged' or 'none'")

    def add_lora(
        self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), vision: bool = False
    ) -> None:
        """Put low-rank adapters on layers: from here on `freeze` gives those in place of the layers' own weights.

        `alpha` None is the rank; no `targets` are the published ones; `vision` includes the layers of vision.
        """
        self._refuse("policy.lora.rank", "takes no adapters; use 0")

    def recompute(self, enabled: bool = True) -> None:
        """Gradient checkpointing: less memory in training, more time, the same gradients."""
        if enabled:
            self._refuse("policy.gradient_checkpointing", "does not have it; use false")

    def compile_blocks(self, enabled: bool = True) -> None:
        """Let blocks run compiled (`torch.compile`) where no gradient is kept: fewer kernels, after up to minutes of
        compiling when they first run. Results are the same, up to rounding.
        """
        if enabled:
            self._refuse("policy.compile", "does not have it; use false")

    def shard_units(self) -> list[nn.Module]:
        """Modules whose weights are gathered together when the policy is divided among devices, such as transformer
        blocks; none lies in another. All else is gathered for as long as a pass lasts; by default that is everything.

        The weights of a unit may be read in calls of its `forward` alone, and all of them have one type.
        """
        return []

    @abstractmethod
    def save(self, directory: Path, *, merge: bool = True) -> None:
        """Write a directory that `load` reads, whole or not at all, with `kind` under `treadle.policy` in its
        config.json (see `checkpoint.write_directory`). It reads weights from `state_dict` and `named_parameters` alone,
        which may be those of a copy.

        Adapters are merged; or, without `merge`, saved alone beside the path of their base.
        """

    def _trainable(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that have a gradient, as `freeze` gives them."""
        groups: dict[str, list[nn.Parameter]] = {"policy": [], "value": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups["value" if name.startswith("value_head.") else "policy"].append(parameter)
        return groups

    @classmethod
    def _refuse(cls, key: str, what: str) -> NoReturn:
        raise ConfigError(f"{key}: policy {cls.kind!r} {what}")
