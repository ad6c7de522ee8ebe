"""OpenVLA-OFT: parallel decoding of a chunk of discrete actions, arXiv:2502.19645.

Shapes: B samples, K tokens of a chunk, N columns of the prefix, W width.
"""

import torch
from torch import Tensor

from treadle.policies import sampling as distribution
from treadle.policies.llama import bidirectional
from treadle.policies.prismatic import PrismaticPolicy
from treadle.policies.protocol import Decision, Inputs, Sampling


class OpenVLAOFT(PrismaticPolicy):
    """An OpenVLA-OFT policy; implements `treadle.policies.protocol.Policy`. Tiny and 7B are configs of this class."""

    def act(self, inputs: Inputs, sampling: Sampling, noise: Tensor | None = None) -> Decision:
        """See `Policy.act`."""
        with torch.no_grad():
            logits, hidden = self._logits(inputs)
            log_probs = distribution.log_distribution(logits, sampling)
            rows = distribution.draw(log_probs, sampling, noise)
            tokens = rows + self.codec.first_id
            return Decision(
                self.codec.decode(tokens).float(), tokens, distribution.take(log_probs, rows), self._values(hidden)
            )

    def hidden_states(self, inputs: Inputs, tokens: Tensor | None = None, reads: int | None = None) -> Tensor:
        """See `PrismaticPolicy.hidden_states`: placeholders of zero stand for the tokens, whatever those are."""
        prefix = self.prefix(inputs)
        start, count = prefix.last, self.config.tokens
        batch, _, width = prefix.embeddings.shape
        placeholders = prefix.embeddings.new_zeros(batch, count, width)
        embed = self.language_model.model.embed_tokens
        stop = embed.weight[self.language_model.config.eos_token_id].expand(batch, 1, -1)
        sequence = torch.cat([prefix.embeddings, placeholders, stop], dim=1)
        columns = sequence.shape[1]
        read = slice(start, start + (reads or count))
        return bidirectional(self.language_model, sequence, prefix.positions(columns), prefix.valid(columns), read)
