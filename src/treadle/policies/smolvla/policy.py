"""SmolVLA as a policy: it acts, says how likely its decisions were, imitates, and is saved.

At temperature 0 a decision is the end of the chain without noise, from noise that belongs to its key. At others steps
of the chain are stochastic, as the settings say, and the temperature multiplies their noise.
Shapes: B samples, H predicted actions, C executed ones, A action dimensions, D padded ones, P and E of log-probs, V
values.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from treadle.data.noise import Keys
from treadle.errors import ConfigError
from treadle.policies import adapters, checkpoint
from treadle.policies.critic import ValueHead
from treadle.policies.flow_matching.chain import Noise
from treadle.policies.flow_matching.sampler import Sampler
from treadle.policies.flow_matching.transitions import Transitions
from treadle.policies.inspection import CheckpointContents
from treadle.policies.observations import check_proprioception
from treadle.policies.protocol import Decision, Evaluation, Policy
from treadle.policies.sampling import Sampling
from treadle.policies.smolvla.config import ACTION, STATE, Settings
from treadle.policies.smolvla.deviation import DeviationHead
from treadle.policies.smolvla.directory import (
    HEAD,
    LORA_TARGETS,
    NETWORK,
    Directory,
    fit_features,
    new_scales,
    read_directory,
    read_part,
)
from treadle.policies.smolvla.directory import write_directory as write
from treadle.policies.smolvla.examine import examine
from treadle.policies.smolvla.expert import Expert
from treadle.policies.smolvla.inputs import SmolVLAInputs, check_frames, read_features, read_prefix, stack_frames
from treadle.policies.smolvla.model import Prefix, SmolVLAModel
from treadle.policies.smolvla.parts import frozen_parts
from treadle.policies.smolvla.prompt import PromptReader
from treadle.policies.smolvla.tiny import describe_tiny

if TYPE_CHECKING:
    from treadle.config.supervised import TinyModelConfig
    from treadle.simulators.protocol import SimulatorSpec


class SmolVLA(Policy):
    """A SmolVLA. Published ones and tiny ones are directories of this class.

    Args:
        found: the directory.
        allocate: make parameters; else they are on the meta device, for tensors of a directory to take their place.
    """

    kind = "smolvla"

    def __init__(self, found: Directory, allocate: bool = True) -> None:
        super().__init__()
        self.found = found
        settings, sizes = found.settings, found.sizes
        self.prompts = PromptReader(found.tokenizer, found.processors.prompt_length, sizes.vocabulary)
        with torch.device("cpu" if allocate else "meta"):
            self.model = SmolVLAModel(sizes)
        self.noise_head: DeviationHead | None = None
        self.value_head: ValueHead | None = None
        self.configure(settings)
        if settings.value_outputs:
            self.add_value_head(settings.value_outputs)

    def configure(self, settings: Settings) -> None:
        """Act and be trained by these settings from here on, with a fresh head of deviations where they are learned.
        What the network's shapes depend on must be as it is.
        """
        self.found = replace(self.found, settings=settings)
        self.chunk, self.action_dim = settings.chunk, self.found.published.size(ACTION)
        self.noise = Noise(settings.noise, settings.level, settings.steps)
        self.noise_head = None
        if settings.noise == "learned":
            sizes, (low, high) = self.found.sizes, settings.deviation
            self.noise_head = DeviationHead(sizes.expert_width, sizes.action, low, high).to(self._place())

    @classmethod
    def recognizes(cls, directory: Path, config: dict[str, Any]) -> bool:
        """See `Policy.recognizes`."""
        return config.get("type") == "smolvla"

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
        """See `Policy.create_tiny`."""
        found = describe_tiny(model, spec, texts, statistics)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(found)
            # Words are multiplied by the root of the width.
            words = made.model.vlm_with_expert.vlm.model.text_model.embed_tokens
            nn.init.normal_(words.weight, std=0.5 / found.sizes.width**0.5)
        made.model.vlm_with_expert.vlm.lm_head = None
        return made

    @classmethod
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
        """See `Policy.load`. `dtype` None keeps the type of each tensor. `overrides` are `Settings`, and `tokenizer`, a
        folder, and `without_statistics`, for a policy that is to be given statistics before it acts.
        """
        made = cls.outline(directory, statistics=statistics, **overrides)
        assert made.found.weights is not None
        weights = checkpoint.read_weights(made.found.weights, dtype, device, made.found.layout)
        head = made.model.vlm_with_expert.vlm
        if HEAD.removeprefix(NETWORK) not in weights:
            head.lm_head = None
        checkpoint.assign(made.model, weights, directory)
        for name in ("value_head", "noise_head"):
            part, tensors = getattr(made, name), read_part(directory, name)
            if part is not None:
                part.to(device)
                if tensors is not None:
                    checkpoint.assign(part, {key: x.to(device) for key, x in tensors.items()}, directory)
        if made.found.adapter is not None:
            adapters.attach(made, made.found.adapter, ("model",))
            if merge:
                adapters.merge(made)
        return made

    @classmethod
    def outline(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> Self:
        """See `Policy.outline`."""
        return cls(read_directory(directory, statistics, **overrides), allocate=False)

    @classmethod
    def examine(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> CheckpointContents:
        """See `Policy.examine`."""
        made = cls.load(directory, device=torch.device("cpu"), dtype=dtype, statistics=statistics, **overrides)
        return examine(made, directory)

    @property
    def predicted(self) -> int:
        """See `Policy.predicted`: H."""
        return self.found.sizes.chunk

    @property
    def width(self) -> int:
        """W of the language model."""
        return self.found.sizes.width

    @property
    def entries(self) -> tuple[int, int]:
        """See `Policy.entries`."""
        return self.sampler.entries

    def describe(self) -> dict[str, Any]:
        """See `Policy.describe`: also H, K and the noise."""
        settings = self.found.settings
        learned = self.noise.method == "learned"
        return super().describe() | {
            "predicted": self.predicted,
            "steps": self.noise.steps,
            "noise": self.noise.method,
            "drawn": settings.drawn_steps,
            **({"deviation": settings.deviation} if learned else {"level": self.noise.level}),
        }

    @property
    def temperatures(self) -> tuple[float, ...]:
        """See `Policy.temperatures`: half of the noise, to three times. An angle stays below a quarter turn."""
        bound = 1 / self.noise.level if self.noise.method == "cps" else math.inf
        return tuple(temperature for temperature in (0.5, 1.0, 1.5, 2.0, 3.0) if temperature <= bound)

    @property
    def sampler(self) -> Sampler:
        """How chains are drawn and scored."""
        settings, sizes = self.found.settings, self.found.sizes
        return Sampler(
            self.noise,
            settings.drawn_steps,
            settings.joined,
            settings.counted,
            sizes.chunk,
            sizes.action,
            self.chunk,
            self.action_dim,
        )

    @property
    def value_outputs(self) -> int:
        """See `Policy.value_outputs`."""
        return self.found.settings.value_outputs

    @property
    def cameras(self) -> int:
        """See `Policy.cameras`."""
        return self.found.settings.cameras

    def rescale(self, name: str, statistics: dict[str, Any]) -> None:
        """See `Policy.rescale`. The data set may have other numbers of actions and proprioception, up to those that
        both are padded to.
        """
        found = fit_features(self.found, statistics)
        self.found = replace(found, scales=new_scales(found.processors, found.published, name, statistics))
        self.action_dim = found.published.size(ACTION)

    def prepare(
        self,
        frames: NDArray[np.uint8] | list[NDArray[np.uint8]],
        instructions: list[str],
        proprioception: NDArray[np.float32] | None = None,
    ) -> SmolVLAInputs:
        """See `Policy.prepare`. Cameras are those of the config, in its order."""
        cameras = check_frames(frames, instructions, self.found.settings.cameras)
        images, sides = stack_frames(cameras)
        ids, mask = self.prompts.read(list(instructions))
        raw = check_proprioception(proprioception, len(images), self.found.published.size(STATE))
        state = self._pad(self._scales.state.normalize(raw.float()), self.found.sizes.state)
        return SmolVLAInputs(state, ids, mask, images, sides).to(self.device)

    @torch.no_grad()
    def encode(self, inputs: SmolVLAInputs) -> SmolVLAInputs:
        """See `Policy.encode`: keys and values of images and prompt, or, where the language model is trained, tokens of
        the images alone. The column of the state is left out, for its projection may be trained.
        """
        features = read_features(self.model, inputs)
        plain = replace(inputs, frames=None, sides=None)
        if self.found.settings.trained == "language":
            return replace(plain, features=features)
        context = self.model.read_context(*self.model.embed_context(features, inputs.ids, inputs.mask))
        return replace(plain, keys=torch.stack(context.keys, 1), cached_values=torch.stack(context.values, 1))

    @torch.no_grad()
    def act(self, inputs: SmolVLAInputs, sampling: Sampling, keys: Keys | None = None) -> Decision:
        """See `Policy.act`."""
        prefix = self.read_prefix(inputs)
        keys = self._fresh_keys(len(inputs)) if keys is None else keys
        if len(keys) != len(inputs):
            raise ConfigError(f"keys: {len(keys)} for {len(inputs)} samples; give each sample one")
        expert, sampler = Expert(self.model, self.noise_head, prefix), self.sampler
        end, transitions = sampler.draw(expert, keys, sampling, self.device)
        if sampling.temperature == 0:
            log_probs = end.new_zeros(len(end), *self.entries)
        else:
            # By the trainer's own code: before any update, a ratio is 1 to the last digit.
            log_probs, _ = sampler.score(expert, transitions, sampling)
        return Decision(self.actions_of(end), transitions.pack(), log_probs, self._values(prefix))

    def evaluate(self, inputs: SmolVLAInputs, choice: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        sampler, prefix = self.sampler, self.read_prefix(inputs)
        if choice.shape != (len(inputs), sampler.numbers):
            raise ConfigError(
                f"choice {list(choice.shape)}; it must be {[len(inputs), sampler.numbers]}, as act returned it"
            )
        transitions = Transitions.unpack(choice, sampler.rows, sampler.columns)
        log_probs, entropy = sampler.score(Expert(self.model, self.noise_head, prefix), transitions, sampling)
        return Evaluation(log_probs, entropy, self._values(prefix))

    def values(self, inputs: SmolVLAInputs) -> Tensor:
        """See `Policy.values`."""
        values = self._values(self.read_prefix(inputs))
        if values is None:
            raise ConfigError("the policy has no value head; give it one with add_value_head")
        return values

    def targets(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, H, A] to normalised, padded ones [B, H, D]."""
        return self._pad(self._scales.action.normalize(actions.float()), self.found.sizes.action)

    def supervised_loss(
        self,
        inputs: SmolVLAInputs,
        targets: Tensor,
        *,
        label_width: float = 0.0,
        generator: torch.Generator | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error of velocities between noise and targets [B, H, D], padded dimensions included, at times
        0.999 Beta(1.5, 1) + 0.001, as in lerobot 0.4.4; see `Policy.supervised_loss`.
        """
        if label_width:
            raise ConfigError("imitation.label_width: this policy predicts numbers, not bins; use 0")
        noise = torch.randn(targets.shape, generator=generator).to(targets)
        time = (0.999 * torch.rand(len(targets), generator=generator).pow(1 / 1.5) + 0.001).to(targets)
        t = time[:, None, None]
        velocity = self.model.velocity(self.read_prefix(inputs), t * noise + (1 - t) * targets, time)
        if counted is None:
            return nn.functional.mse_loss(noise - targets, velocity)
        return nn.functional.mse_loss((noise - targets)[counted], velocity[counted])

    def add_value_head(self, outputs: int, hidden: tuple[int, ...] | None = None) -> None:
        """Give the policy a fresh value head on the last hidden state of the state's column, zero-initialised at its
        end, in place of any it has. `hidden`: widths of its layers, by default those of the settings.
        """
        widths = list(hidden) if hidden is not None else self.found.settings.value_hidden
        settings = self.found.settings.model_copy(update={"value_outputs": outputs, "value_hidden": widths})
        self.found = replace(self.found, settings=settings)
        self.value_head = ValueHead(self.width, tuple(widths), outputs).to(self._place())

    def freeze(self, vision: bool = True) -> dict[str, list[nn.Parameter]]:
        """See `Policy.freeze`. `vision` freezes vision, and the language model too unless the settings say otherwise;
        expert and projections are trained. What takes no part in the output is always frozen. Of a policy with adapters
        they alone are trained, and the heads of values and deviations.
        """
        frozen, adapted = frozen_parts(self.found, vision=vision), bool(adapters.layers(self))
        for name, parameter in self.named_parameters():
            kept = name.startswith(frozen) or (adapted and name.startswith("model.") and not adapters.is_adapter(name))
            parameter.requires_grad_(not kept)
        return self._trainable()

    def add_lora(
        self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), vision: bool = False
    ) -> None:
        """See `Policy.add_lora`, and `adapters.add_lora`. What `freeze` keeps as it is gets none."""
        frozen = frozen_parts(self.found, vision=not vision)
        adapters.add_lora(self, rank, alpha, targets, published=LORA_TARGETS, parts=("model",), frozen=frozen)

    def vision_parts(self) -> nn.ModuleList:
        """What sees, before `features`."""
        inner = self.model.vlm_with_expert.vlm.model
        if self.found.sizes.towers:
            return nn.ModuleList([inner.eyes.towers, inner.eyes.projector])
        return nn.ModuleList([inner.vision_model, inner.connector])

    def features(self, inputs: SmolVLAInputs) -> Tensor:
        """Tokens [B, S, W] of all cameras, with gradient where enabled."""
        return read_features(self.model, inputs)

    def instructed_states(self, inputs: SmolVLAInputs, instructions: list[str], generator: torch.Generator) -> Tensor:
        """The expert's hidden states [B, H, E] of random actions at random times, under other instructions: whatever it
        is about to do, it shall know where things are.
        """
        ids, mask = (x.to(self.device) for x in self.prompts.read(instructions))
        sizes = self.found.sizes
        x = torch.randn(len(ids), sizes.chunk, sizes.action, generator=generator).to(self.device)
        time = torch.rand(len(ids), generator=generator).to(self.device)
        return self.model.expert_states(self.read_prefix(replace(inputs, ids=ids, mask=mask)), x, time)

    def save(self, directory: Path, *, merge: bool = True) -> None:
        """See `Policy.save`: in lerobot's layout, with the settings in `treadle.json`."""
        write(Path(directory), self.found, self.kind, self, merge=merge)

    def read_prefix(self, inputs: SmolVLAInputs) -> Prefix:
        """What the expert reads of inputs, with gradient where enabled."""
        return read_prefix(self.model, inputs)

    def velocities(self, inputs: SmolVLAInputs, x: Tensor, t: Tensor) -> Tensor:
        """Velocities [B, H, D] of states x [B, H, D] at times [B]."""
        return self.model.velocity(self.read_prefix(inputs), x, t)

    @property
    def _scales(self) -> Any:
        if self.found.scales is None:
            raise ConfigError(
                "policy.options.without_statistics: this policy has no statistics yet to scale by; fine-tune it with "
                "imitation.statistics=dataset, or choose a group by policy.statistics"
            )
        return self.found.scales

    def _fresh_keys(self, count: int) -> Keys:
        return torch.randint(2**62, (count,)).numpy().astype(np.uint64)

    def actions_of(self, end: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] of the end [B, H, D] of a chain."""
        return self._scales.action.unnormalize(end[:, : self.chunk, : self.action_dim])

    def _values(self, prefix: Prefix) -> Tensor | None:
        if self.value_head is None:
            return None
        assert prefix.state is not None
        norm = self.model.vlm_with_expert.vlm.model.text_model.norm
        return self.value_head(norm(prefix.state).detach())

    def _pad(self, values: Tensor, width: int) -> Tensor:
        return nn.functional.pad(values, (0, width - values.shape[-1]))

    def _place(self) -> torch.device:
        """Where new parts go."""
        device = self.device
        return torch.device("cpu") if device.type == "meta" else device
