"""OpenVLA-OFT: parallel decoding of a chunk of actions, arXiv:2502.19645.

Shapes: B samples, K entries of a chunk (tokens, or regressed values), N columns of the prefix, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from treadle.errors import ConfigError
from treadle.policies import sampling as distribution
from treadle.policies.film import add_film, mean_language, read_film, without_film, write_film
from treadle.policies.llama import bidirectional
from treadle.policies.openvla_oft import regression
from treadle.policies.openvla_oft.config import OpenVLAOFTConfig
from treadle.policies.openvla_oft.regression import ActionScale, RegressionHead
from treadle.policies.parts import PartFile, read_part
from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.prismatic_config import PrismaticConfig
from treadle.policies.protocol import Decision, Evaluation, Inputs, Sampling
from treadle.policies.vision import ViT

TOWERS = "vision_backbone."
FILM_FILE = PartFile("vision_backbone--latest_checkpoint.pt")
"""Where towers with FiLM go that were in no file, under a name that the official code finds."""


class OpenVLAOFT(PrismaticPolicy):
    """An OpenVLA-OFT policy; implements `treadle.policies.protocol.Policy`. Tiny and 7B are configs of this class.

    With an L1 regression head the "tokens" of a decision are its normalised actions, float32, and log-probs are
    log-densities.
    """

    config: OpenVLAOFTConfig

    def _build(self, config: PrismaticConfig) -> None:
        super()._build(config)
        assert isinstance(config, OpenVLAOFTConfig)
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

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        """See `Policy.act`."""
        with torch.no_grad():
            hidden = self.hidden_states(inputs)
            if self.action_head is not None:
                return self._act_around(hidden, sampling, noise)
            log_probs = distribution.log_distribution(self._action_logits(hidden), sampling)
            rows = distribution.draw(log_probs, sampling, noise)
            tokens = rows + self.codec.first_id
            return Decision(
                self.codec.decode(tokens).float(), tokens, distribution.take(log_probs, rows), self._values(hidden)
            )

    def _act_around(self, hidden: Tensor, sampling: Sampling, noise: Tensor | None) -> Decision:
        density, centre, scale = self._density(hidden)
        values = regression.draw(density, centre, scale, sampling, noise)
        actions = self.codec.scale.unnormalize(values.unflatten(1, (self.chunk, self.action_dim)))
        log_probs = regression.log_prob(density, values, centre, scale, sampling)
        return Decision(actions.float(), values, log_probs, self._values(hidden))

    def evaluate(self, inputs: Inputs, tokens: Tensor, sampling: Sampling) -> Evaluation:
        """See `Policy.evaluate`."""
        if self.action_head is None:
            return super().evaluate(inputs, tokens, sampling)
        hidden = self.hidden_states(inputs)
        density, centre, scale = self._density(hidden)
        entropy = regression.entropy(density, scale, sampling).expand_as(centre)
        log_probs = regression.log_prob(density, tokens, centre, scale, sampling)
        return Evaluation(log_probs, entropy, self._values(hidden))

    def supervised_loss(
        self, inputs: Inputs, tokens: Tensor, label_width: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """See `Policy.supervised_loss`. A regressed chunk has the mean absolute error of a Laplace density's centre, or
        the mean squared one of a Gaussian's, in normalised units; `label_width` is of tokens alone.
        """
        if self.action_head is None:
            return super().supervised_loss(inputs, tokens, label_width, noise)
        if label_width:
            raise ConfigError(f"label_width {label_width}: this policy regresses actions, which have no bins; use 0")
        centre = self.action_head(self.hidden_states(inputs))
        return F.l1_loss(centre, tokens) if self.config.head == "laplace" else F.mse_loss(centre, tokens)

    def tokenize_actions(self, actions: Tensor) -> Tensor:
        """Un-normalised actions [B, C, A] to the nearest tokens [B, K], or to normalised values [B, K]."""
        if self.action_head is None:
            return super().tokenize_actions(actions)
        return self.codec.scale.normalize(actions).clamp(-1, 1).float().flatten(-2)

    def hidden_states(self, inputs: Inputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """See `PrismaticPolicy.hidden_states`: placeholders of zero stand for the tokens, whatever those are."""
        prefix = self.prefix(inputs)
        start, count = prefix.last, self.config.tokens
        batch, _, width = prefix.embeddings.shape
        placeholders = prefix.embeddings.new_zeros(batch, count, width)
        stop = self._stop().expand(batch, 1, -1)
        sequence = torch.cat([prefix.embeddings, placeholders, stop], dim=1)
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
        found = read_film(tensors, self.sources["vision_backbone"].file)
        kept = {name: tensor for name, tensor in weights.items() if not name.startswith(TOWERS)}
        # Training may have left the file in another type than the rest, with which the towers compute.
        dtype = dtype or next((tensor.dtype for tensor in kept.values()), None)
        return kept | {TOWERS + name: tensor.to(device, dtype) for name, tensor in found.items()}

    def _main_files(self, main: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        if not self.config.film:
            return super()._main_files(main)
        towers = {name.removeprefix(TOWERS): x for name, x in main.items() if name.startswith(TOWERS)}
        source = self.sources.get("vision_backbone", FILM_FILE)
        content = source.names(write_film(towers, self.config.film_rank))
        rest = {name: x for name, x in main.items() if not name.startswith(TOWERS)}
        plain = {TOWERS + name: x for name, x in without_film(towers).items()}
        return {source.file: content, **super()._main_files(plain | rest)}

    def _language(self, inputs: Inputs) -> tuple[Tensor, ...]:
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
