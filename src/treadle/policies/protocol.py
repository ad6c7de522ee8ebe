"""What a policy supplies to rollout and training.

Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A action tokens, V values per forward (1 or C).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """The distribution that actions are drawn from; one definition for acting and for evaluation."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability after temperature and top-k reaches this."""


@dataclass(slots=True)
class Inputs:
    """Model inputs of B samples. Either `frames` (uint8) or `features` (projected patches) is there."""

    input_ids: Tensor
    """[B, L] prompt tokens, right-padded, int64."""
    attention_mask: Tensor
    """[B, L] bool, False on padding."""
    frames: Tensor | None = None
    """[B, cameras, H, W, 3] uint8, RGB."""
    features: Tensor | None = None
    """[B, patches, width] projected vision features, in place of frames."""
    proprioception: Tensor | None = None
    """[B, P] float32, normalised to [-1, 1] by the policy's statistics."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def take(self, rows: Tensor | slice) -> "Inputs":
        """The given rows, in the given order."""
        return self._map(lambda x: x[rows])

    def to(self, device: torch.device | str) -> "Inputs":
        """The same inputs on another device."""
        return self._map(lambda x: x.to(device))

    @staticmethod
    def cat(parts: "list[Inputs]") -> "Inputs":
        """Concatenate along samples; prompts must be padded to one length."""

        def column(name: str) -> Tensor | None:
            tensors: list[Tensor | None] = [getattr(part, name) for part in parts]
            present = [x for x in tensors if x is not None]
            return torch.cat(present) if present else None

        return Inputs(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.attention_mask for part in parts]),
            *(column(name) for name in ("frames", "features", "proprioception")),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        optional = (self.frames, self.features, self.proprioception)
        return Inputs(
            change(self.input_ids),
            change(self.attention_mask),
            *(None if x is None else change(x) for x in optional),
        )


@dataclass(slots=True)
class Decision:
    """What a policy decided for B samples."""

    actions: Tensor
    """[B, C, A] float32, un-normalised, in the policy's convention."""
    tokens: Tensor
    """[B, K] absolute vocabulary ids, int64; of a policy that regresses actions the normalised actions, float32."""
    log_probs: Tensor
    """[B, K] float32, under the distribution that was sampled."""
    values: Tensor | None
    """[B, V] float32, or None where the policy has no value head."""


@dataclass(slots=True)
class Evaluation:
    """What the trainer needs of given tokens, with gradient."""

    log_probs: Tensor
    """[B, K] float32."""
    entropy: Tensor
    """[B, K] float32, nats."""
    values: Tensor | None
    """[B, V] float32, or None where the policy has no value head."""


class Policy(Protocol):
    """A vision-language-action policy. Implementations are `torch.nn.Module`s."""

    chunk: int
    """C, actions per decision."""
    action_dim: int
    """A."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        ...

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        ...

    def add_value_head(self, outputs: int) -> None:
        """Give the policy a fresh value head with V outputs, in place of any it has."""
        ...

    def freeze(self, vision: bool = True) -> dict[str, list[torch.nn.Parameter]]:
        """Choose what is trained: the trainable parameters of the `policy` and of its `value` head."""
        ...

    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> Inputs:
        """Frames [B, cameras, H, W, 3] (or one array per camera), B instructions and raw proprioception [B, P] to
        model inputs on the policy's device, prompts padded to `prompt_length`.
        """
        ...

    def encode(self, inputs: Inputs) -> Inputs:
        """Replace frames by projected vision features, without gradient: worth it where vision is frozen."""
        ...

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        """Decide, without gradient. `noise` [B, K] uniform in [0, 1) picks the tokens by inverse distribution
        function, so that randomness can belong to a scenario; by default it is drawn afresh.
        """
        ...

    def evaluate(self, inputs: Inputs, tokens: Tensor, sampling: Sampling) -> Evaluation:
        """Log-probs, entropy and values of `tokens` [B, K], with gradient."""
        ...

    def values(self, inputs: Inputs) -> Tensor:
        """Values [B, V] alone, with gradient where enabled."""
        ...

    def supervised_loss(
        self, inputs: Inputs, tokens: Tensor, label_width: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """Cross-entropy of the action tokens [B, K], a scalar (of regressed actions their error).

        `label_width` spreads each label over neighbouring bins, by a Gaussian of that standard deviation. A policy that
        decodes one token after another then reads earlier tokens drawn from theirs, by `noise` [B, K] in [0, 1), drawn
        afresh where None: it meets in training what it will have sampled.
        """
        ...

    def tokenize_actions(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K]."""
        ...

    def add_lora(
        self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), vision: bool = False
    ) -> None:
        """Put low-rank adapters on layers: from here on `freeze` gives those in place of the layers' own weights.

        `alpha` None is the rank; no `targets` are the published ones; `vision` includes towers and vision projector.
        """
        ...

    def recompute(self, enabled: bool = True) -> None:
        """Gradient checkpointing: less memory in training, more time, the same gradients."""
        ...

    def compile_blocks(self, enabled: bool = True) -> None:
        """Let transformer blocks run compiled (`torch.compile`) where no gradient is kept: fewer kernels, after up to
        minutes of compiling when they first run. Results are the same, up to rounding.
        """
        ...

    def save(self, directory: Path, *, merge: bool = True) -> None:
        """Write a Hugging Face directory in the published layout, adapters merged; or, without `merge`, adapters alone
        beside the path of their base.
        """
        ...

    def train(self, mode: bool = True) -> Self:
        """Training mode, as `torch.nn.Module.train`."""
        ...

    def eval(self) -> Self:
        """Acting mode."""
        ...
