"""OpenVLA: discrete actions decoded one token after another, arXiv:2406.09246.

Shapes: B samples, K tokens, N columns of the prefix, W width.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from treadle.data.noise import Keys
from treadle.errors import ConfigError
from treadle.policies.footprint import Activations
from treadle.policies.prismatic import action_tokens
from treadle.policies.prismatic.activations import count_activations
from treadle.policies.prismatic.config import PrismaticConfig, from_json, override
from treadle.policies.prismatic.llama import Decoder, causal
from treadle.policies.prismatic.load import Directory
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy
from treadle.policies.prismatic.recognition import DOUBT, Family, recognize
from treadle.policies.protocol import Decision
from treadle.policies.sampling import Sampling

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenVLAConfig(PrismaticConfig):
    """All that the shapes and conventions of a policy depend on, but for the statistics. Published ones have C = 1."""

    kind: ClassVar[str] = "openvla"


class OpenVLA(PrismaticPolicy):
    """An OpenVLA policy. Tiny and 7B are configs of this class.

    A chunk of more than one action is decoded action by action.
    """

    kind = OpenVLAConfig.kind
    config_type = OpenVLAConfig

    @classmethod
    def recognizes_published(cls, directory: Path, config: dict[str, Any]) -> bool:
        """A published directory that nothing tells to be OpenVLA-OFT's; where either is possible, a warning says so."""
        if "treadle" in config:
            return False
        family, reason = recognize(directory, config)
        if family is Family.UNKNOWN:
            _log.warning("%s: taken for OpenVLA; %s (%s)", directory, DOUBT, reason)
        return family is not Family.OFT

    @classmethod
    def configure(cls, found: Directory, overrides: dict[str, Any]) -> OpenVLAConfig:
        """See `PrismaticPolicy.configure`."""
        # Directories of Treadle say it themselves, or are older than the fact.
        published = {} if "treadle" in found.config else {"cameras": 1}
        return override(from_json(OpenVLAConfig, found.config, found.action_dim, **published), overrides)

    def activations(self) -> Activations:
        """See `Policy.activations`."""
        return count_activations(self, cached=True)

    def act(self, inputs: PrismaticInputs, sampling: Sampling, keys: Keys | None = None) -> Decision:
        """See `Policy.act`. The prefix is computed once; each token costs one more column."""
        count, embed = self.config.tokens, self.language_model.model.embed_tokens
        noise = self._noise(inputs, keys, sampling)
        with torch.no_grad():
            prefix = self.prefix(inputs)
            columns = prefix.last + count
            decoder = Decoder(self.language_model, prefix.embeddings, prefix.positions(columns), prefix.valid(columns))
            values = self._values(decoder.hidden)
            tokens, log_probs = [], []
            for index in range(count):
                row_log_probs = action_tokens.log_distribution(self._action_logits(decoder.hidden), sampling)
                rows = action_tokens.draw(row_log_probs, sampling, None if noise is None else noise[:, index, None])
                tokens.append(rows + self.codec.first_id)
                log_probs.append(action_tokens.take(row_log_probs, rows))
                if index + 1 < count:
                    decoder.read(embed(tokens[-1]))
            chosen = torch.cat(tokens, dim=1)
            return self._decision(self.codec.decode(chosen), chosen, torch.cat(log_probs, dim=1), values)

    def _read_in_training(self, tokens: Tensor, label_width: float, generator: torch.Generator | None) -> Tensor:
        """Spread as the labels are: one that was never read, beside a label that never changes, would say nothing."""
        if not label_width:
            return tokens
        spread = action_tokens.soft_labels((tokens - self.codec.first_id).flatten(), action_tokens.BINS, label_width)
        log_probs = spread.log().unflatten(0, tokens.shape)
        noise = torch.rand(tokens.shape, generator=generator).to(tokens.device)
        return action_tokens.draw(log_probs, Sampling(), noise) + self.codec.first_id

    def hidden_states(self, inputs: PrismaticInputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """See `PrismaticPolicy.hidden_states`."""
        reads = reads or (1 if tokens is None else self.config.tokens)
        sequence = self.prefix(inputs)
        embeddings = sequence.embeddings
        if reads > 1:
            if tokens is None:
                raise ConfigError(f"{reads} positions of an autoregressive policy need the tokens read at them")
            read = self.language_model.model.embed_tokens(tokens[:, : reads - 1])
            embeddings = torch.cat([embeddings, read], dim=1)
        columns = embeddings.shape[1]
        return causal(self.language_model, embeddings, sequence.positions(columns), sequence.valid(columns), reads)
