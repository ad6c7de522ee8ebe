"""The plain path that policies are measured against: stock `transformers`, and a second pass for log-probs.

It shares the weights, the vision towers and the value head with the policy; the language model runs as the library
has it, with logits over the whole vocabulary.

Shapes: B samples, N columns of the prompt with its patches, K tokens, M vocabulary rows.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from treadle.policies.prismatic import OpenVLA, OpenVLAOFT
from treadle.policies.prismatic.model import PrismaticInputs
from treadle.policies.prismatic.policy import PrismaticPolicy


class Reference(Protocol):
    """The plain path of one policy."""

    def act(self, inputs: PrismaticInputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens [B, K], sampled; their log-probs [B, K] and values [B, V] from a second pass."""
        ...

    def evaluate(self, inputs: PrismaticInputs, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probs [B, K] of `tokens` over the whole vocabulary, and values."""
        ...


class AutoregressiveReference:
    """`generate`, then a forward pass over the whole sequence."""

    def __init__(self, policy: OpenVLA) -> None:
        self._policy = policy
        self._model = policy.language_model

    def act(self, inputs: PrismaticInputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Reference`."""
        count = self._policy.config.tokens
        with torch.no_grad():
            embeddings, mask = left_padded(self._policy, inputs)
            model: Any = self._model
            tokens = model.generate(
                inputs_embeds=embeddings,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=self._policy.config.pad_token_id,
            )
            assert isinstance(tokens, Tensor)
            return tokens, *self.evaluate(inputs, tokens)

    def evaluate(self, inputs: PrismaticInputs, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Reference`."""
        hidden = self.hidden_states(inputs, tokens)
        logits = self._model.lm_head(hidden).float()
        start = hidden.shape[1] - tokens.shape[1] - 1
        log_probs = torch.log_softmax(logits[:, start:-1], dim=-1).gather(-1, tokens[..., None])[..., 0]
        head = self._policy.value_head
        return log_probs, None if head is None else head(hidden[:, start])

    def hidden_states(self, inputs: PrismaticInputs, tokens: Tensor) -> Tensor:
        """Last hidden states [B, N + K, W], prompts padded on the left."""
        embeddings, mask = left_padded(self._policy, inputs)
        sequence = torch.cat([embeddings, self._model.model.embed_tokens(tokens)], dim=1)
        mask = torch.cat([mask, mask.new_ones(tokens.shape)], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        out = self._model.model(
            inputs_embeds=sequence, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        assert out is not None
        return out


class ParallelReference:
    """One pass to sample, the same pass again for log-probs."""

    def __init__(self, policy: OpenVLAOFT) -> None:
        self._policy = policy
        self._model = policy.language_model

    def act(self, inputs: PrismaticInputs) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `Reference`."""
        with torch.no_grad():
            logits, _ = self.logits(inputs)
            probabilities = logits.softmax(dim=-1)
            tokens = torch.multinomial(probabilities.flatten(0, 1), 1).view(logits.shape[:2])
            return tokens, *self.evaluate(inputs, tokens)

    def evaluate(self, inputs: PrismaticInputs, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """See `Reference`."""
        logits, hidden = self.logits(inputs)
        log_probs = torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0]
        head = self._policy.value_head
        return log_probs, None if head is None else head(hidden)

    def logits(self, inputs: PrismaticInputs) -> tuple[Tensor, Tensor]:
        """Logits [B, K, M] float32 at the action positions, and the last prompt token's hidden states [B, W]."""
        policy, count = self._policy, self._policy.config.tokens
        prefix = policy.prefix(inputs)
        embed = self._model.model.embed_tokens
        batch, _, width = prefix.embeddings.shape
        stop = embed.weight[self._model.config.eos_token_id].expand(batch, 1, -1)
        sequence = torch.cat([prefix.embeddings, prefix.embeddings.new_zeros(batch, count, width), stop], dim=1)
        columns = sequence.shape[1]
        valid = prefix.valid(columns)
        everything = torch.ones(batch, columns, dtype=torch.bool, device=sequence.device)
        square = (everything if valid is None else valid)[:, None, None, :].expand(-1, 1, columns, -1)
        hidden = self._model.model(
            inputs_embeds=sequence,
            attention_mask=square,
            position_ids=prefix.positions(columns).expand(batch, -1),
            use_cache=False,
        ).last_hidden_state
        assert hidden is not None
        logits = self._model.lm_head(hidden).float()
        return logits[:, prefix.last : prefix.last + count], hidden[:, prefix.last]


def left_padded(policy: PrismaticPolicy, inputs: PrismaticInputs) -> tuple[Tensor, Tensor]:
    """Embeddings [B, N, W] of `[BOS] [patches] [proprioception] [prompt]`, as `generate` takes them, and their mask."""
    prefix = policy.prefix(inputs)
    columns = prefix.last + 1
    valid = prefix.valid(columns)
    if valid is None:
        return prefix.embeddings, torch.ones(prefix.embeddings.shape[:2], dtype=torch.bool, device=policy.device)
    order = valid.to(torch.uint8).argsort(dim=1, stable=True)
    rows = torch.arange(len(order), device=order.device)[:, None]
    return prefix.embeddings[rows, order], valid.gather(1, order)


REFERENCES: dict[type[PrismaticPolicy], Callable[[Any], Reference]] = {
    OpenVLA: AutoregressiveReference,
    OpenVLAOFT: ParallelReference,
}
