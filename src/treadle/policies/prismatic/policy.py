"""What OpenVLA and OpenVLA-OFT share as policies: log-probs, values and losses, what is trained, and saving.

Shapes: B samples, C actions of a chunk, A action dimensions, K = C * A tokens, W width, R = 256 action rows, V values.
"""

import logging
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.data import noise
from treadle.data.noise import Keys
from treadle.errors import ConfigError
from treadle.policies import adapters, checkpoint
from treadle.policies.critic import ValueHead
from treadle.policies.footprint import Activations
from treadle.policies.inspection import CheckpointContents
from treadle.policies.prismatic import action_tokens
from treadle.policies.prismatic.activations import count_activations
from treadle.policies.prismatic.config import PrismaticConfig, tiny_config, to_json
from treadle.policies.prismatic.examine import examine, remarks
from treadle.policies.prismatic.llama import LeanLayer
from treadle.policies.prismatic.load import (
    FLOAT32,
    LORA_TARGETS,
    OWN,
    PARTS,
    Directory,
    fill,
    read_directory,
    settings_directory,
    with_critic,
)
from treadle.policies.prismatic.model import PrismaticInputs, PrismaticModel
from treadle.policies.prismatic.preprocessor import PREPROCESSOR, make_preprocessor
from treadle.policies.prismatic.prompt import TOKENIZER, build_tokenizer
from treadle.policies.prismatic.recognition import DOUBT, Family, recognize
from treadle.policies.prismatic.sizes import describe_size
from treadle.policies.prismatic.statistics import select_key, twins
from treadle.policies.prismatic.vision import Block
from treadle.policies.protocol import Decision, Evaluation
from treadle.policies.sampling import Sampling, check_sampling
from treadle.policies.tensors import missing
from treadle.policies.towers import Tower

if TYPE_CHECKING:
    from treadle.config.supervised import TinyModelConfig
    from treadle.simulators.protocol import SimulatorSpec

_log = logging.getLogger(__name__)

MODEL_TYPE = "openvla"
"""`model_type` of published config.json files."""


class PrismaticPolicy(PrismaticModel):
    """A policy of the family, but for how actions are decoded: `act`, `hidden_states` and `configure`."""

    config_type: ClassVar[type[PrismaticConfig]]

    @classmethod
    def recognizes(cls, directory: Path, config: dict[str, Any]) -> bool:
        """See `Policy.recognizes`. The directory of an adapter is its base's kind."""
        directory = settings_directory(directory)
        if not (directory / checkpoint.CONFIG).is_file():
            return False
        config = checkpoint.read_json(directory / checkpoint.CONFIG)
        named = checkpoint.named_policy(config, directory / checkpoint.CONFIG)
        if named is not None:
            return named == cls.kind
        return config.get("model_type") == MODEL_TYPE and cls.recognizes_published(directory, config)

    @classmethod
    def statistics_names(cls, name: str) -> tuple[str, ...]:
        """See `Policy.statistics_names`."""
        return (name, *twins(name))

    @classmethod
    @abstractmethod
    def recognizes_published(cls, directory: Path, config: dict[str, Any]) -> bool:
        """Whether a directory of the family that names no policy is of this class; never true of two classes."""

    @classmethod
    @abstractmethod
    def configure(cls, found: Directory, overrides: dict[str, Any]) -> PrismaticConfig:
        """The config of a directory, with settings that override it. Raises CheckpointError or ConfigError."""

    @classmethod
    def create(
        cls,
        config: PrismaticConfig,
        norm_stats: dict[str, Any],
        tokenizer: Path,
        *,
        statistics: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A policy with random weights. `tokenizer`: a directory that `build_tokenizer` wrote."""
        files = checkpoint.read_carried(tokenizer)
        if TOKENIZER not in files:
            raise missing(tokenizer / TOKENIZER)
        files.setdefault(PREPROCESSOR, make_preprocessor(config.image_size, len(config.towers)))
        key = select_key(norm_stats, statistics, "norm_stats")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, norm_stats, key, files)

    @classmethod
    def create_tiny(
        cls,
        model: "TinyModelConfig",
        spec: "SimulatorSpec",
        texts: Iterable[str],
        statistics: dict[str, Any],
        *,
        seed: int = 0,
        **facts: Any,
    ) -> Self:
        """See `Policy.create_tiny`. `facts` are further fields of the config."""
        with tempfile.TemporaryDirectory() as folder:
            config = tiny_config(
                cls.config_type,
                vocabulary=build_tokenizer(texts, Path(folder)),
                image_size=spec.height,
                action_dim=spec.action_dim,
                proprioception_dim=spec.proprioception_dim,
                cameras=len(spec.cameras),
                **model.model_dump(exclude={"kind"}),
                **facts,
            )
            return cls.create(config, {spec.name: statistics}, Path(folder), seed=seed)

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
        """See `Policy.load`; `overrides` are fields of the config."""
        made, found = cls.skeleton(directory, statistics, **overrides)
        for remark in remarks(made, found, dtype):
            if remark.warning:
                _log.warning("%s: %s", directory, remark.text)
        return fill(made, found, device, dtype, merge)

    @classmethod
    def skeleton(cls, directory: Path, statistics: str | None = None, **overrides: Any) -> tuple[Self, Directory]:
        """The policy of a directory with parameters on the meta device, and what was read.

        `overrides` are fields of the config. Raises CheckpointError or ConfigError.
        """
        found = read_directory(directory, statistics)
        config = cls.configure(found, overrides)
        config, found = with_critic(config, found, overrides)
        files = checkpoint.read_carried(found.path)
        if TOKENIZER not in files:
            raise missing(found.path / TOKENIZER)
        made = cls(config, found.norm_stats, found.statistics, files, allocate=False, source=found.source)
        made.base = found.weights
        made.layout = {name: stored.file for name, stored in found.layout.items()}
        return made, found

    @classmethod
    def examine(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> CheckpointContents:
        """See `Policy.examine`. Weights are looked through, one after another, and not kept."""
        return examine(cls, directory, statistics, dtype, overrides)

    @classmethod
    def outline(
        cls, directory: Path, *, statistics: str | None = None, dtype: torch.dtype | None = None, **overrides: Any
    ) -> Self:
        """See `Policy.outline`. Of the weights, headers alone are read."""
        made, found = cls.skeleton(directory, statistics, **overrides)
        return made.typed(dtype or found.dtype)

    @classmethod
    def outline_size(cls, size: str, dtype: torch.dtype, **overrides: Any) -> Self:
        """See `Policy.outline_size`."""
        config, statistics, files = describe_size(cls.config_type, size, overrides)
        return cls(config, statistics, size, files, allocate=False).typed(dtype)

    def typed(self, dtype: torch.dtype) -> Self:
        """This policy with parameters of a type, but for the parts that are always float32."""
        self.to(dtype)
        for name, module in self.named_children():
            if name in FLOAT32:
                module.float()
        return self

    def activations(self) -> Activations:
        """See `Policy.activations`."""
        return count_activations(self)

    @classmethod
    def conventions(cls, found: Directory, config: PrismaticConfig) -> dict[str, str]:
        """What was taken for granted of a directory, and from where: lines for people, by title."""
        lines = {} if config.prompt == "llama2" else {"prompt": f"{config.prompt}'s, by llm_backbone_id"}
        if "treadle" in found.config:
            return lines
        family, reason = recognize(found.path, found.config)
        if family is Family.UNKNOWN and cls.kind == Family.OPENVLA.value:
            reason = f"{reason}; {DOUBT}"
        elif family.value != cls.kind:
            reason = "as policy.kind says"
        return {"taken for": f"{cls.kind}: {reason}", **lines}

    @property
    def width(self) -> int:
        """W, of features and hidden states."""
        return self.config.width

    @property
    def value_outputs(self) -> int:
        """V of the value head, 0 without one."""
        return self.config.value_outputs

    @abstractmethod
    def hidden_states(self, inputs: PrismaticInputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """Last hidden states [B, reads, W] from the last prompt token on: those that predict the action tokens.

        `tokens` [B, K] are what is read at each position in turn, where a policy decodes one after another. `reads` is
        how many there are: K by default, and 1 for a policy that would need tokens for more and has none.
        """

    def evaluate(self, inputs: PrismaticInputs, choice: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        self._check_choice(inputs, choice, sampling)
        logits, hidden = self._logits(inputs, choice)
        rows = choice - self.codec.first_id
        log_distribution = action_tokens.log_distribution(logits, sampling, rows)
        log_probs = action_tokens.take(log_distribution, rows)
        entropy = action_tokens.entropy(log_distribution, sampling)
        return Evaluation(self._by_action(log_probs), self._by_action(entropy), self._values(hidden))

    def values(self, inputs: PrismaticInputs) -> Tensor:
        """See `Policy.values`."""
        values = self._values(self.hidden_states(inputs, reads=1))
        if values is None:
            raise ConfigError("the policy has no value head; give it one with add_value_head")
        return values

    def targets(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K]."""
        return self.codec.encode(actions)

    def supervised_loss(
        self,
        inputs: PrismaticInputs,
        targets: Tensor,
        *,
        label_width: float = 0.0,
        generator: torch.Generator | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the action tokens [B, K] over the 256 action rows; see `Policy.supervised_loss`.

        A policy that decodes one token after another reads earlier tokens drawn from the spread labels: it meets in
        training what it will have sampled.
        """
        logits, _ = self._logits(inputs, self._read_in_training(targets, label_width, generator))
        rows = (targets - self.codec.first_id).flatten()
        labels = action_tokens.soft_labels(rows, logits.shape[-1], label_width) if label_width else rows
        losses = F.cross_entropy(logits.flatten(0, 1), labels, reduction="none" if counted is not None else "mean")
        return losses if counted is None else self._mean_counted(losses.unflatten(0, targets.shape), counted)

    def _mean_counted(self, losses: Tensor, counted: Tensor | None) -> Tensor:
        """The mean of losses [B, K], of the actions [B, C] that count."""
        return losses.mean() if counted is None else losses.unflatten(1, (self.chunk, -1))[counted].mean()

    def _read_in_training(self, tokens: Tensor, label_width: float, generator: torch.Generator | None) -> Tensor:
        """The tokens [B, K] that `supervised_loss` lets the policy read, if it reads any, where `tokens` are right."""
        return tokens

    def vision_parts(self) -> nn.ModuleList:
        """The towers and the vision projector."""
        return nn.ModuleList([self.vision_backbone, self.projector])

    def instructed_states(self, inputs: PrismaticInputs, instructions: list[str], generator: torch.Generator) -> Tensor:
        """Hidden states [B, K, W] at the positions that predict actions, under other instructions.

        A policy that reads its own actions reads random ones: whatever it did, it shall know where things are.
        """
        ids, mask = self.prompts.encode(instructions)
        inputs = replace(inputs, input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        shape = (len(instructions), self.config.tokens)
        tokens = torch.randint(self.codec.first_id, self.codec.vocabulary, shape, generator=generator)
        return self.hidden_states(inputs, tokens.to(self.device))

    def add_value_head(self, outputs: int, hidden: tuple[int, ...] | None = None) -> None:
        """Give the policy a fresh value head, zero-initialised at its end, in place of any it has.

        `outputs` V: 1 or C. `hidden`: widths of its layers, by default the config's `value_hidden`.
        """
        hidden = self.config.value_hidden if hidden is None else hidden
        self.config = replace(self.config, value_outputs=outputs, value_hidden=hidden)
        self.value_head = ValueHead(self.config.width, hidden, outputs).to(self.device)

    def freeze(self, vision: bool = True) -> dict[str, list[nn.Parameter]]:
        """See `Policy.freeze`. `vision` freezes towers and vision projector. Of a part with adapters they alone are
        trained. Parameters that take no part in the output are always frozen.
        """
        unused = {id(p) for p in self.unused()}
        adapted = bool(adapters.layers(self))
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            frozen = vision and part in ("vision_backbone", "projector")
            frozen |= adapted and part in PARTS and ".lora_" not in name
            parameter.requires_grad_(not frozen and id(parameter) not in unused)
        return self._trainable()

    def add_lora(
        self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), vision: bool = False
    ) -> None:
        """See `Policy.add_lora`, and `adapters.add_lora`. Heads and projectors in files of their own stay trained."""
        unused = {id(p) for p in self.unused()}
        idle = [name for name, module in self.named_modules() if any(id(p) in unused for p in module.parameters(False))]
        frozen = [*idle, *(() if vision else ("vision_backbone.", "projector."))]
        adapters.add_lora(self, rank, alpha, targets, published=LORA_TARGETS, parts=PARTS, frozen=frozen)

    def recompute(self, enabled: bool = True) -> None:
        """See `Policy.recompute`. Only what is between transformer blocks is kept."""
        for module in self.modules():
            if isinstance(module, Tower | LeanLayer):
                module.recompute = enabled

    def compile_blocks(self, enabled: bool = True) -> None:
        """See `Policy.compile_blocks`. Blocks with FiLM stay as they are."""
        for module in self.modules():
            if isinstance(module, Block | LeanLayer):
                module.fast = enabled

    def shard_units(self) -> list[nn.Module]:
        """See `Policy.shard_units`: blocks, the projector, and heads of files of their own. Embeddings, language head
        and final norm are read outside of their modules. Raises ConfigError for a policy with adapters.
        """
        if adapters.layers(self):
            raise ConfigError(
                "placement.sharding 'full': a policy with adapters is not divided, because each pass would gather its "
                "frozen base again; use placement.sharding=none, or policy.lora.rank=0"
            )
        parts = (self.proprio_projector, self.value_head, *self.heads())
        return [
            *(unit for tower in self.towers() for unit in tower.shard_units()),
            self.projector,
            *self.language_model.model.layers,
            *(part for part in parts if part is not None),
        ]

    def heads(self) -> tuple[nn.Module | None, ...]:
        """What decides on actions in place of the language head."""
        return ()

    def save(self, directory: Path, *, merge: bool = True) -> None:
        """See `Policy.save`: in the published layout. Adapters without `merge` name the directory that the policy was
        loaded from, which must stay where it is.
        """
        parts: dict[str, dict[str, Tensor]] = {}
        main: dict[str, Tensor] = {}
        for name, tensor in adapters.plain_state(self).items():
            part, _, rest = name.partition(".")
            if part in self.sources and part not in PARTS:
                parts.setdefault(part, {})[rest] = tensor
            else:
                main[name] = tensor
        files = {
            **self.files,
            checkpoint.CONFIG: checkpoint.dump_json(to_json(self.config, self.norm_stats)),
            checkpoint.STATISTICS: checkpoint.dump_json(self.norm_stats),
        }
        tensors = {self.sources[part].file: self.sources[part].names(content) for part, content in parts.items()}
        if merge or not adapters.layers(self):
            tensors |= self._main_files(main)
        else:
            if self.base is None:
                raise ConfigError("an adapter is saved alone beside a base, and this policy was made, not loaded")
            tensors |= {file: x for file, x in self._main_files(main).items() if file != checkpoint.WEIGHTS}
            texts, content = adapters.written(self, self.base)
            files |= {f"{adapters.FOLDER}/{name}": text for name, text in texts.items()}
            tensors[f"{adapters.FOLDER}/{adapters.ADAPTER_WEIGHTS}"] = content
        checkpoint.write_directory(Path(directory), files, tensors, self.layout, adapters.exporter(self))

    def main_state(self) -> dict[str, Tensor]:
        """The tensors of the main weights as their files name them."""
        state = adapters.plain_state(self)
        own = {name for name in state if name.partition(".")[0] in OWN}
        return self._main_files({name: x for name, x in state.items() if name not in own})[checkpoint.WEIGHTS]

    def take_main(
        self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, Tensor]:
        """The main weights as this policy names them, given those of the files; a subclass may add what lies in files
        of their own in `directory`.
        """
        return weights

    def make_part(self, name: str, device: torch.device) -> bool:
        """Make a part afresh that its directory has no file of; False where it must have one."""
        return False

    def _main_files(self, main: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The files of the main weights."""
        return {checkpoint.WEIGHTS: main}

    def _logits(self, inputs: PrismaticInputs, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Float32 logits [B, K, R] of the action rows, and the hidden states [B, K, W] they are from."""
        hidden = self.hidden_states(inputs, tokens)
        return self._action_logits(hidden), hidden

    def _action_logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., R] of the action rows, all that is ever computed of the language head."""
        rows = slice(self.codec.first_id, self.codec.vocabulary)
        return adapters.linear_rows(self.language_model.lm_head, hidden, rows).float()

    def _check_choice(self, inputs: PrismaticInputs, choice: Tensor, sampling: Sampling) -> None:
        """Raises ConfigError for choices that are not those of `inputs`, and for no sampling."""
        check_sampling(sampling)
        if choice.shape != (len(inputs), self.config.tokens):
            raise ConfigError(
                f"choice {list(choice.shape)}; it must be [{len(inputs)}, {self.config.tokens}], as act returned it"
            )

    def _values(self, hidden: Tensor) -> Tensor | None:
        return None if self.value_head is None else self.value_head(hidden[:, 0])

    def _noise(self, inputs: PrismaticInputs, keys: Keys | None, sampling: Sampling) -> Tensor | None:
        """Uniform numbers [B, K] of the samples' keys; None where none are needed, or they are to be drawn afresh.

        Raises ConfigError where there are not as many keys as samples, and for no sampling.
        """
        check_sampling(sampling)
        if keys is not None and len(keys) != len(inputs):
            raise ConfigError(f"keys: {len(keys)} for {len(inputs)} samples; give each sample one")
        if keys is None or sampling.temperature == 0:
            return None
        return torch.from_numpy(noise.uniform(keys, self.config.tokens)).to(self.device)

    def _decision(self, actions: Tensor, choice: Tensor, log_probs: Tensor, values: Tensor | None) -> Decision:
        """A decision of actions [B, C, A] and log-probs [B, K]."""
        return Decision(actions.float(), choice, self._by_action(log_probs), values)

    def _by_action(self, entries: Tensor) -> Tensor:
        """[B, K] to [B, C, A]."""
        return entries.unflatten(1, self.entries)
