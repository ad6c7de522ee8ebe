"""OpenVLA: discrete actions decoded one token after another, arXiv:2406.09246.

Shapes: B samples, K tokens, N columns of the prefix, W width.
"""

import torch
from torch import Tensor

from treadle.errors import ConfigError
from treadle.policies import sampling as distribution
from treadle.policies.action_codec import BINS, soft_labels
from treadle.policies.llama import Decoder, causal
from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.protocol import Decision, Inputs, Sampling


class OpenVLA(PrismaticPolicy):
    """An OpenVLA policy; implements `treadle.policies.protocol.Policy`. Tiny and 7B are configs of this class.

    A chunk of more than one action is decoded action by action.
    """

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        """See `Policy.act`. The prefix is computed once; each token costs one more column."""
        count, embed = self.config.tokens, self.language_model.model.embed_tokens
        with torch.no_grad():
            prefix = self.prefix(inputs)
            columns = prefix.last + count
            decoder = Decoder(self.language_model, prefix.embeddings, prefix.positions(columns), prefix.valid(columns))
            values = self._values(decoder.hidden)
            tokens, log_probs = [], []
            for index in range(count):
                row_log_probs = distribution.log_distribution(self._action_logits(decoder.hidden), sampling)
                rows = distribution.draw(row_log_probs, sampling, None if noise is None else noise[:, index, None])
                tokens.append(rows + self.codec.first_id)
                log_probs.append(distribution.take(row_log_probs, rows))
                if index + 1 < count:
                    decoder.step(embed(tokens[-1]))
            chosen = torch.cat(tokens, dim=1)
            return Decision(self.codec.decode(chosen).float(), chosen, torch.cat(log_probs, dim=1), values)

    def _reads(self, tokens: Tensor, label_width: float, noise: Tensor | None) -> Tensor:
        """Spread as the labels are: one that was never read, beside a label that never changes, would say nothing."""
        if not label_width:
            return tokens
        spread = soft_labels((tokens - self.codec.first_id).flatten(), BINS, label_width)
        log_probs = spread.log().unflatten(0, tokens.shape)
        return distribution.draw(log_probs, Sampling(), noise) + self.codec.first_id

    def hidden_states(self, inputs: Inputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
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
