"""OpenVLA-OFT: parallel decoding of a chunk of actions, arXiv:2502.19645.

Shapes: B samples, K entries of a chunk (tokens, or regressed values), N columns of the prefix, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from treadle.config.section import Natural, Positive, Rate
from treadle.data.noise import Keys
from treadle.errors import CheckpointError, ConfigError
from treadle.policies.prismatic import action_tokens, regression
from treadle.policies.prismatic.config import PrismaticConfig, from_json, override
from treadle.policies.prismatic.film import (
    adapter_shapes,
    add_film,
    default_adapters,
    mean_language,
    read_film,
    without_film,
    write_film,
)
from treadle.policies.prismatic.llama import bidirectional
from treadle.policies.prismatic.load import (
    Directory,
    PartFile,
    find_part,
    published_proprioception,
    read_part,
)
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.recognition import Family, recognize
from treadle.policies.prismatic.regression import ActionScale, RegressionHead
from treadle.policies.prismatic.statistics import Normalization
from treadle.policies.prismatic.vision import ViT
from treadle.policies.protocol import Decision, Evaluation
from treadle.policies.sampling import Sampling

TOWERS = "vision_backbone."
FILM_FILE = PartFile("vision_backbone--latest_checkpoint.pt")
"""Where towers with FiLM go that were in no file, under a name that the official code finds."""

Head = Literal["tokens", "laplace", "gaussian"]


@dataclass(frozen=True, slots=True)
class Platform:
    """What the official code has as constants of a robot, and no file of a checkpoint says."""

    chunk: int
    """C."""
    normalization: Normalization


PLATFORMS = {
    "libero": Platform(8, "quantiles"),
    "aloha": Platform(25, "bounds"),
    "bridge": Platform(5, "quantiles"),
}
"""By a part of the data set's name, in the order in which the official code looks."""


def find_platform(statistics: str, action_dim: int) -> tuple[Platform, str]:
    """The constants of a data set, and why they: by its name; else ALOHA's for 14 dimensions (two arms), else LIBERO's.

    The official code looks for the name in its command line.
    """
    for name, platform in PLATFORMS.items():
        if name in statistics.lower():
            return platform, f"those of {name}, by the name of the data set {statistics!r}"
    name = "aloha" if action_dim == 14 else "libero"
    return PLATFORMS[name], f"those of {name}, by the {action_dim} dimensions of the data set {statistics!r}"


@dataclass(frozen=True)
class OpenVLAOFTConfig(PrismaticConfig):
    """All that the shapes and conventions of a policy depend on, but for the statistics."""

    kind: ClassVar[str] = "openvla_oft"

    chunk: Positive = 8
    """C, actions per decision."""
    head: Head = "tokens"
    """What decides on actions: discrete tokens, or a density around what the L1 regression head says."""
    initial_scale: Rate = 0.1
    """Scale of that density where a checkpoint has none yet, in normalised units: actions span [-1, 1]."""
    stop_token: bool = True
    """The end-of-text token follows the places of the actions, as in the official code; RLinf's leaves it out."""
    film: bool = False
    """The instruction modulates the vision towers (FiLM)."""
    film_rank: Natural = 0
    """Rank of the adapters in the published file of such towers, which the official code expects there; 0 none."""


class OpenVLAOFT(PrismaticPolicy):
    """An OpenVLA-OFT policy. Tiny and 7B are configs of this class.

    With an L1 regression head the choice of a decision is its normalised actions [B, K] float32 in place of tokens, and
    log-probs are log-densities.
    """

    kind = OpenVLAOFTConfig.kind
    config_type = OpenVLAOFTConfig
    config: OpenVLAOFTConfig

    @classmethod
    def recognizes_published(cls, directory: Path, config: dict[str, Any]) -> bool:
        """OpenVLA-OFT's parts or code lie there, or it is an own directory of old, which names no policy."""
        return "treadle" in config or recognize(directory, config)[0] is Family.OFT

    @classmethod
    def configure(cls, found: Directory, overrides: dict[str, Any]) -> OpenVLAOFTConfig:
        """See `PrismaticPolicy.configure`.

        What lies in files of its own is used where there is such a file: a proprioception projector
        (`proprioception_dim=0` leaves it out), an L1 action head (`head="tokens"` leaves it out), towers with FiLM.
        What else published files lack is as in the official code: see `find_platform`.
        """
        platform, _ = find_platform(found.statistics, found.action_dim)
        constants = {"chunk": found.config.get("num_action_chunks") or platform.chunk}
        config = from_json(
            OpenVLAOFTConfig, found.config, found.action_dim, **constants, normalization=platform.normalization
        )
        if config.prompt != "llama2":
            raise CheckpointError(
                f"config.json: llm_backbone_id: found {found.config['llm_backbone_id']!r}; allowed for OpenVLA-OFT, "
                "whose code asks in Llama 2's form alone: llama2-7b-pure, llama2-13b-pure"
            )
        parts: dict[str, Any] = {}
        if not config.proprioception_dim:
            parts["proprioception_dim"] = published_proprioception(found.path)
        head = find_part(found.path, "action_head")
        if head is not None and "head" not in found.config.get("treadle", {}):
            parts["head"] = "laplace"
        if find_part(found.path, "vision_backbone") is not None:
            shapes = adapter_shapes(read_part(found.path, "vision_backbone")[0])
            ranks = {shape[0] for name, shape in shapes.items() if ".lora_A." in name}
            parts |= {"film": True, "film_rank": max(ranks, default=0)}
        config = override(replace(config, **parts), overrides)
        if config.head != "tokens" and head is None:
            raise CheckpointError(f"{found.path}: head {config.head!r} needs an action_head file, and there is none")
        return config

    @classmethod
    def conventions(cls, found: Directory, config: PrismaticConfig) -> dict[str, str]:
        """See `PrismaticPolicy.conventions`."""
        platform, reason = find_platform(found.statistics, found.action_dim)
        lines = super().conventions(found, config)
        if "treadle" in found.config:
            return lines
        # Other sources than the robot's constants may have said either.
        taken = [f"chunk {platform.chunk}"] if config.chunk == platform.chunk else []
        taken += [platform.normalization] if config.normalization == platform.normalization else []
        return lines | ({"constants": f"{', '.join(taken)}: {reason}"} if taken else {})

    def _build(self, config: PrismaticConfig) -> None:
        super()._build(config)
        assert isinstance(config, OpenVLAOFTConfig)
        self._film_adapters: dict[str, tuple[int, ...]] | None = None
        if config.film:
            for tower in self.towers():
                if not isinstance(tower, ViT):
                    raise ConfigError(f"film: only transformer towers can have it, not {type(tower).__name__}")
                add_film(tower, config.width)
        if config.head == "tokens":
            self.action_head = self.action_scale = None
        else:
            self.action_head = RegressionHead(config.width, config.action_dim)
            self.action_scale = ActionScale(config.action_dim, config.initial_scale)

    def act(self, inputs: PrismaticInputs, sampling: Sampling, keys: Keys | None = None) -> Decision:
        """See `Policy.act`."""
        noise = self._noise(inputs, keys, sampling)
        with torch.no_grad():
            hidden = self.hidden_states(inputs)
            values = self._values(hidden)
            if self.action_head is None:
                log_distribution = action_tokens.log_distribution(self._action_logits(hidden), sampling)
                rows = action_tokens.draw(log_distribution, sampling, noise)
                tokens, log_probs = rows + self.codec.first_id, action_tokens.take(log_distribution, rows)
                return self._decision(self.codec.decode(tokens), tokens, log_probs, values)
            density, centre, scale = self._density(hidden)
            drawn = regression.draw(density, centre, scale, sampling, noise)
            actions = self.codec.scale.unnormalize(drawn.unflatten(1, (self.chunk, self.action_dim)))
            log_probs = regression.log_prob(density, drawn, centre, scale, sampling)
            return self._decision(actions, drawn, log_probs, values)

    def evaluate(self, inputs: PrismaticInputs, choice: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        if self.action_head is None:
            return super().evaluate(inputs, choice, sampling)
        self._check_choice(inputs, choice, sampling)
        hidden = self.hidden_states(inputs)
        density, centre, scale = self._density(hidden)
        entropy = regression.entropy(density, scale, sampling).expand_as(centre)
        log_probs = regression.log_prob(density, choice, centre, scale, sampling)
        return Evaluation(self._by_action(log_probs), self._by_action(entropy), self._values(hidden))

    def supervised_loss(
        self,
        inputs: PrismaticInputs,
        targets: Tensor,
        *,
        label_width: float = 0.0,
        generator: torch.Generator | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """See `Policy.supervised_loss`. A regressed chunk has the mean absolute error of a Laplace density's centre, or
        the mean squared one of a Gaussian's, in normalised units; `label_width` is of tokens alone.
        """
        if self.action_head is None:
            return super().supervised_loss(
                inputs, targets, label_width=label_width, generator=generator, counted=counted
            )
        if label_width:
            raise ConfigError(f"label_width {label_width}: this policy regresses actions, which have no bins; use 0")
        centre = self.action_head(self.hidden_states(inputs))
        loss = F.l1_loss if self.config.head == "laplace" else F.mse_loss
        return self._mean_counted(loss(centre, targets, reduction="none"), counted)

    def targets(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K], or to normalised values [B, K]."""
        if self.action_head is None:
            return super().targets(actions)
        return self.codec.scale.normalize(actions).clamp(-1, 1).float().flatten(-2)

    def hidden_states(self, inputs: PrismaticInputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """See `PrismaticPolicy.hidden_states`: placeholders of zero stand for the tokens, whatever those are."""
        prefix = self.prefix(inputs)
        start, count = prefix.last, self.config.tokens
        batch, _, width = prefix.embeddings.shape
        placeholders = prefix.embeddings.new_zeros(batch, count, width)
        stop = [self._stop().expand(batch, 1, -1)] if self.config.stop_token else []
        sequence = torch.cat([prefix.embeddings, placeholders, *stop], dim=1)
        columns = sequence.shape[1]
        read = slice(start, start + (reads or count))
        return bidirectional(self.language_model, sequence, prefix.positions(columns), prefix.valid(columns), read)

    def add_lora(
        self, rank: int, alpha: float | None = None, targets: Sequence[str] = (), vision: bool = False
    ) -> None:
        """See `Policy.add_lora`. Towers with FiLM get none: their published file has places of its own for them."""
        if vision and self.config.film:
            raise ConfigError("policy.lora with FiLM: adapters go on the language model alone; use freeze_vision=true")
        super().add_lora(rank, alpha, targets, vision)

    def heads(self) -> tuple[nn.Module | None, ...]:
        """See `PrismaticPolicy.heads`."""
        return self.action_head, self.action_scale

    def make_part(self, name: str, device: torch.device) -> bool:
        """A published regression head has no scale; its first one is `initial_scale`."""
        if name != "action_scale":
            return False
        self.action_scale = ActionScale(self.action_dim, self.config.initial_scale).to(device)
        return True

    def take_main(
        self, weights: dict[str, Tensor], directory: Path, dtype: torch.dtype | None, device: torch.device
    ) -> dict[str, Tensor]:
        """Towers with FiLM lie in a file of their own, and those in the main weights are not used."""
        if not self.config.film:
            return weights
        tensors, self.sources["vision_backbone"] = read_part(directory, "vision_backbone")
        found = read_film(tensors, directory / self.sources["vision_backbone"].file)
        self._film_adapters = adapter_shapes(tensors)
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith(TOWERS)}
        return kept | {TOWERS + name: tensor.to(device, dtype) for name, tensor in found.items()}

    def _main_files(self, main: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        if not self.config.film:
            return super()._main_files(main)
        towers = {name.removeprefix(TOWERS): x for name, x in main.items() if name.startswith(TOWERS)}
        source = self.sources.get("vision_backbone", FILM_FILE)
        adapters = self._film_adapters
        adapters = default_adapters(towers, self.config.film_rank) if adapters is None else adapters
        content = source.names(write_film(towers, adapters))
        rest = {name: x for name, x in main.items() if not name.startswith(TOWERS)}
        plain = {TOWERS + name: x for name, x in without_film(towers).items()}
        return {source.file: content, **super()._main_files(plain | rest)}

    def _language(self, inputs: PrismaticInputs) -> tuple[Tensor, ...]:
        if not self.config.film:
            return ()
        assert inputs.frames is not None
        embeddings = self.language_model.model.embed_tokens(inputs.input_ids)
        mean = mean_language(embeddings, inputs.attention_mask, self._stop())
        return (mean.repeat_interleave(inputs.frames.shape[1], dim=0),)

    def _stop(self) -> Tensor:
        return self.language_model.model.embed_tokens.weight[self.language_model.config.eos_token_id]

    def _density(self, hidden: Tensor) -> tuple[regression.Density, Tensor, Tensor]:
        """The density, its centre [B, K] and scale [K]."""
        assert self.action_head is not None
        assert self.action_scale is not None
        assert self.config.head != "tokens"
        return self.config.head, self.action_head(hidden), self.action_scale(self.chunk)
